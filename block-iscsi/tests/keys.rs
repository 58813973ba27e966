//! Negotiation against a slow twin: a table of the keys of RFC 7143, section 13, written down a
//! second time, and all values a key can have, tried one by one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_iscsi::keys::{
    DigestKind, Key, KeyError, Negotiated, Negotiation, Offer, Pair, Rule, SessionKind, Stage,
    TaskReporting,
};
use proptest::prelude::*;

/// `(name, how it is found, default, smallest, largest, in discovery sessions)`.
const TABLE: &[(&str, &str, u32, u32, u32, bool)] = &[
    ("MaxConnections", "min", 1, 1, 65535, false),
    ("InitialR2T", "or", 1, 0, 1, false),
    ("ImmediateData", "and", 1, 0, 1, false),
    ("MaxBurstLength", "min", 262_144, 512, 16_777_215, false),
    ("FirstBurstLength", "min", 65536, 512, 16_777_215, false),
    ("DefaultTime2Wait", "max", 2, 0, 3600, true),
    ("DefaultTime2Retain", "min", 20, 0, 3600, true),
    ("MaxOutstandingR2T", "min", 1, 1, 65535, false),
    ("DataPDUInOrder", "or", 1, 0, 1, false),
    ("DataSequenceInOrder", "or", 1, 0, 1, false),
    ("ErrorRecoveryLevel", "min", 0, 0, 2, true),
];

type Row = (&'static str, &'static str, u32, u32, u32, bool);

fn text(row: &Row, number: u32) -> String {
    match row.1 {
        "or" | "and" => if number == 1 { "Yes" } else { "No" }.to_owned(),
        _ => number.to_string(),
    }
}

/// Whether a target whose own value is one of all can answer `offered` with `answer`.
fn twin_allows(row: &Row, offered: u32, answer: u32) -> bool {
    let edges = [row.3, row.4, offered, answer, offered.saturating_add(1)];
    let targets = edges.into_iter().filter(|own| (row.3..=row.4).contains(own));
    let mut results = targets.map(|own| match row.1 {
        "min" | "and" => own.min(offered),
        _ => own.max(offered),
    });
    (row.3..=row.4).contains(&answer) && results.any(|result| result == answer)
}

/// The value of a row in an offer.
fn place(offer: &mut Offer, name: &str, number: u32) {
    let small = u16::try_from(number).unwrap_or(u16::MAX);
    match name {
        "MaxConnections" => offer.max_connections = small,
        "InitialR2T" => offer.initial_r2t = number == 1,
        "ImmediateData" => offer.immediate_data = number == 1,
        "MaxBurstLength" => offer.max_burst_len = number,
        "FirstBurstLength" => offer.first_burst_len = number,
        "DefaultTime2Wait" => offer.time_to_wait_secs = small,
        "DefaultTime2Retain" => offer.time_to_retain_secs = small,
        "MaxOutstandingR2T" => offer.max_outstanding_r2t = small,
        "DataPDUInOrder" => offer.data_pdu_in_order = number == 1,
        "DataSequenceInOrder" => offer.data_sequence_in_order = number == 1,
        _ => offer.error_recovery_level = u8::try_from(number).unwrap(),
    }
}

fn found(negotiated: &Negotiated, name: &str) -> u32 {
    match name {
        "MaxConnections" => negotiated.max_connections.into(),
        "InitialR2T" => negotiated.initial_r2t.into(),
        "ImmediateData" => negotiated.immediate_data.into(),
        "MaxBurstLength" => negotiated.max_burst_len,
        "FirstBurstLength" => negotiated.first_burst_len,
        "DefaultTime2Wait" => negotiated.time_to_wait_secs.into(),
        "DefaultTime2Retain" => negotiated.time_to_retain_secs.into(),
        "MaxOutstandingR2T" => negotiated.max_outstanding_r2t.into(),
        "DataPDUInOrder" => negotiated.data_pdu_in_order.into(),
        "DataSequenceInOrder" => negotiated.data_sequence_in_order.into(),
        _ => negotiated.error_recovery_level.into(),
    }
}

fn value(row: Row) -> impl Strategy<Value = u32> {
    prop_oneof![Just(row.3), Just(row.4), row.3..=row.4]
}

/// One value of each row.
fn values() -> impl Strategy<Value = Vec<u32>> {
    TABLE.iter().map(|row| value(*row)).collect::<Vec<_>>()
}

fn offer_of(values: &[u32]) -> Offer {
    let mut offer = Offer::default();
    for (row, number) in TABLE.iter().zip(values) {
        place(&mut offer, row.0, *number);
    }
    offer.first_burst_len = offer.first_burst_len.min(offer.max_burst_len);
    offer
}

fn receive(
    negotiation: &mut Negotiation,
    key: &str,
    value: &str,
) -> Result<Option<Pair>, KeyError> {
    negotiation.receive(Stage::Operational, &Pair::new(key, value))
}

fn normal(offer: &Offer) -> (Negotiation, Vec<Pair>) {
    let mut negotiation = Negotiation::new(SessionKind::Normal, offer).unwrap();
    let offers = negotiation.offers();
    (negotiation, offers)
}

/// Answers every offer with itself, but for one key.
fn answer_all_but(negotiation: &mut Negotiation, offers: &[Pair], but: &str) {
    for pair in offers {
        if pair.key != but && pair.key != "MaxRecvDataSegmentLength" {
            let first = pair.value.split(',').next().unwrap();
            assert_eq!(receive(negotiation, &pair.key, first), Ok(None));
        }
    }
}

proptest! {
    #[test]
    fn answers_are_taken_if_and_only_if_the_rule_allows_them(
        ours in values(),
        row in 0..TABLE.len(),
        theirs in prop_oneof![Just(0_u32), Just(1), Just(512), 0..70_000_u32, any::<u32>()],
    ) {
        let row = &TABLE[row];
        let offer = offer_of(&ours);
        let (mut negotiation, offers) = normal(&offer);
        let offered = offers.iter().find(|pair| pair.key == row.0).unwrap().value.clone();
        let own = match offered.as_str() {
            "Yes" => 1,
            "No" => 0,
            number => number.parse().unwrap(),
        };
        let is_flag = matches!(row.1, "or" | "and");
        let theirs = if is_flag { theirs % 2 } else { theirs };
        let answer = text(row, theirs);
        let taken = receive(&mut negotiation, row.0, &answer);
        let key = row.0.to_owned();
        if twin_allows(row, own, theirs) {
            prop_assert_eq!(taken, Ok(None));
            let again = receive(&mut negotiation, row.0, &answer);
            prop_assert_eq!(again, Err(KeyError::Repeated { key, value: answer }));
        } else if (row.3..=row.4).contains(&theirs) {
            prop_assert_eq!(taken, Err(KeyError::Answer { key, value: answer, offered }));
        } else {
            prop_assert_eq!(taken, Err(KeyError::Value { key, value: answer }));
        }
    }

    #[test]
    fn what_is_negotiated_is_what_the_two_sides_make_of_it(ours in values(), theirs in values()) {
        let offer = offer_of(&ours);
        let target = offer_of(&theirs);
        let (mut negotiation, offers) = normal(&offer);
        let (_, targets) = normal(&target);
        let mut expected = Vec::new();
        answer_digests(&mut negotiation);
        for row in TABLE {
            let number = |pairs: &[Pair]| {
                let pair = pairs.iter().find(|pair| pair.key == row.0).unwrap();
                match pair.value.as_str() {
                    "Yes" => 1,
                    "No" => 0,
                    number => number.parse().unwrap(),
                }
            };
            let (own, other): (u32, u32) = (number(&offers), number(&targets));
            let result = match row.1 {
                "min" | "and" => own.min(other),
                _ => own.max(other),
            };
            prop_assert_eq!(receive(&mut negotiation, row.0, &text(row, result)), Ok(None));
            expected.push((row.0, result));
        }
        prop_assert!(negotiation.is_complete());
        let negotiated = negotiation.finish().unwrap();
        for (name, result) in expected {
            prop_assert_eq!(found(&negotiated, name), result, "{}", name);
        }
    }

    /// The target is the originator: we answer with what both sides make of it.
    #[test]
    fn offers_of_the_target_are_answered(level in 0..40_u32, list in "[A-Za-z0-9,]{0,20}") {
        let mut negotiation = Negotiation::new(SessionKind::Normal, &Offer::default()).unwrap();
        let key = "iSCSIProtocolLevel";
        let answer = receive(&mut negotiation, key, &level.to_string()).unwrap().unwrap();
        let expected = if level > 31 { "Reject".to_owned() } else { level.min(1).to_string() };
        prop_assert_eq!(answer, Pair::new(key, &expected));

        let mut negotiation = Negotiation::new(SessionKind::Normal, &Offer::default()).unwrap();
        let answer = receive(&mut negotiation, "HeaderDigest", &list).unwrap().unwrap();
        let knows = list.split(',').any(|name| name == "None");
        prop_assert_eq!(answer.value, if knows { "None" } else { "Reject" });
    }

    #[test]
    fn any_pairs_never_panic(
        pairs in prop::collection::vec(
            (prop::sample::select(Key::ALL), "Yes|No|Reject|[0-9]{1,9}|\\PC{0,9}"),
            0..12,
        ),
        offered in any::<bool>(),
    ) {
        let mut negotiation = Negotiation::new(SessionKind::Normal, &Offer::default()).unwrap();
        if offered {
            let _ = negotiation.offers();
        }
        for (key, value) in pairs {
            let _ = receive(&mut negotiation, key.name(), &value);
        }
        if let Ok(negotiated) = negotiation.finish() {
            prop_assert!(negotiated.first_burst_len <= negotiated.max_burst_len);
        }
    }
}

fn answer_digests(negotiation: &mut Negotiation) {
    for key in ["HeaderDigest", "DataDigest"] {
        assert_eq!(receive(negotiation, key, "None"), Ok(None));
    }
}

#[test]
fn the_table_says_what_the_twin_says() {
    for (name, rule, default, min, max, in_discovery) in TABLE {
        let spec = Key::from_name(name).unwrap().spec();
        let row = (*name, *rule, *default, *min, *max, *in_discovery);
        assert_eq!(spec.default, text(&row, *default), "{name}");
        assert_eq!(spec.in_discovery, *in_discovery, "{name}");
        let expected = match *rule {
            "min" => Rule::Minimum { min: *min, max: *max },
            "max" => Rule::Maximum { min: *min, max: *max },
            "or" => Rule::Or,
            _ => Rule::And,
        };
        assert_eq!(spec.rule, expected, "{name}");
    }
    for key in Key::ALL {
        assert_eq!(Key::from_name(key.name()), Some(*key));
        assert!(key.name().len() <= 63);
    }
}

#[test]
fn defaults_hold_if_nobody_says_anything() {
    let negotiation = Negotiation::new(SessionKind::Normal, &Offer::default()).unwrap();
    let negotiated = negotiation.finish().unwrap();
    for row in TABLE {
        assert_eq!(found(&negotiated, row.0), row.2, "{}", row.0);
    }
    assert_eq!(negotiated.header_digest, DigestKind::None);
    assert_eq!(negotiated.task_reporting, TaskReporting::Rfc3720);
    assert_eq!(negotiated.max_recv_data_segment_len, 8192);
    assert_eq!(negotiated.max_send_data_segment_len, 8192);
}

#[test]
fn a_discovery_session_offers_only_what_matters_to_it() {
    let mut negotiation = Negotiation::new(SessionKind::Discovery, &Offer::default()).unwrap();
    let offers = negotiation.offers();
    for row in TABLE {
        assert_eq!(offers.iter().any(|pair| pair.key == row.0), row.5, "{}", row.0);
        if !row.5 {
            let answer = receive(&mut negotiation, row.0, &text(row, row.2));
            assert_eq!(answer, Ok(Some(Pair::new(row.0, "Irrelevant"))));
        }
    }
    assert_eq!(negotiation.offers().len(), 1, "a second time nothing is left to offer");
}

#[test]
fn a_discovery_session_has_no_recovery_and_no_protocol_level() {
    let offer = Offer { error_recovery_level: 2, ..Offer::default() };
    let mut negotiation = Negotiation::new(SessionKind::Discovery, &offer).unwrap();
    let offers = negotiation.offers();
    assert!(offers.contains(&Pair::new("ErrorRecoveryLevel", "0")));
    assert!(normal(&offer).1.contains(&Pair::new("ErrorRecoveryLevel", "2")));
    let answer = receive(&mut negotiation, "iSCSIProtocolLevel", "1");
    assert_eq!(answer, Ok(Some(Pair::new("iSCSIProtocolLevel", "Irrelevant"))));
}

#[test]
fn obsolete_keys_are_refused_and_unknown_ones_are_not_understood() {
    let (mut negotiation, _) = normal(&Offer::default());
    for key in ["IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt"] {
        assert_eq!(receive(&mut negotiation, key, "No"), Ok(Some(Pair::new(key, "Reject"))));
    }
    let answer = receive(&mut negotiation, "X-org.example", "No");
    assert_eq!(answer, Ok(Some(Pair::new("X-org.example", "NotUnderstood"))));
}

#[test]
fn a_target_may_have_several_addresses() {
    let (mut negotiation, _) = normal(&Offer::default());
    for address in ["192.0.2.1:3260,1", "[2001:db8::1]:3260,1"] {
        assert_eq!(receive(&mut negotiation, "TargetAddress", address), Ok(None));
    }
}

#[test]
fn every_offer_needs_an_answer_unless_it_settles_the_matter() {
    let offer = Offer { initial_r2t: true, immediate_data: false, ..Offer::default() };
    let (_, offers) = normal(&offer);
    let settled = ["InitialR2T", "ImmediateData", "DataPDUInOrder", "DataSequenceInOrder"];
    for pair in offers.iter().filter(|pair| pair.key != "MaxRecvDataSegmentLength") {
        let (mut negotiation, offers) = normal(&offer);
        answer_all_but(&mut negotiation, &offers, &pair.key);
        let result = negotiation.finish();
        assert_eq!(negotiation.is_complete(), result.is_ok());
        if settled.contains(&pair.key.as_str()) {
            let negotiated = result.unwrap();
            assert_eq!((negotiated.initial_r2t, negotiated.immediate_data), (true, false));
        } else {
            match result {
                Err(KeyError::Unanswered { key, .. }) => assert_eq!(key, pair.key),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn refusals_leave_the_default_where_it_fits_the_offer() {
    for refusal in ["Reject", "NotUnderstood"] {
        // 65536 is less than what is offered: an answer could have been that.
        let fits = Offer { first_burst_len: 131_072, ..Offer::default() };
        let (mut negotiation, offers) = normal(&fits);
        answer_all_but(&mut negotiation, &offers, "FirstBurstLength");
        assert_eq!(receive(&mut negotiation, "FirstBurstLength", refusal), Ok(None));
        assert_eq!(negotiation.finish().unwrap().first_burst_len, 65_536);
        // It is more than what is offered.
        let small = Offer { first_burst_len: 4096, ..Offer::default() };
        let (mut negotiation, _) = normal(&small);
        let refused = receive(&mut negotiation, "FirstBurstLength", refusal);
        let key = "FirstBurstLength".to_owned();
        let (value, offered) = (refusal.to_owned(), "4096".to_owned());
        assert_eq!(refused, Err(KeyError::Refused { key, value, offered }));
        // Only CRC32C is offered, and the default is none.
        let digest = Offer { data_digest: vec![DigestKind::Crc32c], ..Offer::default() };
        let (mut negotiation, _) = normal(&digest);
        let refused = receive(&mut negotiation, "DataDigest", refusal);
        assert!(matches!(refused, Err(KeyError::Refused { .. })));
    }
    let small = Offer { first_burst_len: 4096, ..Offer::default() };
    let (mut negotiation, offers) = normal(&small);
    answer_all_but(&mut negotiation, &offers, "FirstBurstLength");
    assert_eq!(receive(&mut negotiation, "FirstBurstLength", "Irrelevant"), Ok(None));
    assert_eq!(negotiation.finish().unwrap().first_burst_len, 4096);
}

#[test]
fn lists_are_chosen_from_and_declarations_are_kept() {
    let offer = Offer {
        header_digest: vec![DigestKind::Crc32c, DigestKind::None],
        task_reporting: vec![
            TaskReporting::FastAbort,
            TaskReporting::ResponseFence,
            TaskReporting::Rfc3720,
        ],
        max_recv_data_segment_len: 262_144,
        ..Offer::default()
    };
    let (mut negotiation, offers) = normal(&offer);
    assert!(offers.contains(&Pair::new("HeaderDigest", "CRC32C,None")));
    assert!(offers.contains(&Pair::new("MaxRecvDataSegmentLength", "262144")));
    answer_all_but(&mut negotiation, &offers, "");
    for (key, value) in [
        ("MaxRecvDataSegmentLength", "65536"),
        ("TargetAlias", "a disk"),
        ("TargetPortalGroupTag", "7"),
        ("X#NodeArchitecture", "a,b"),
    ] {
        assert_eq!(receive(&mut negotiation, key, value), Ok(None));
        let again = receive(&mut negotiation, key, value);
        assert!(matches!(again, Err(KeyError::Repeated { .. })), "{key}");
    }
    let negotiated = negotiation.finish().unwrap();
    assert_eq!(negotiated.header_digest, DigestKind::Crc32c);
    assert_eq!(negotiated.task_reporting, TaskReporting::FastAbort);
    assert_eq!(negotiated.max_recv_data_segment_len, 262_144);
    assert_eq!(negotiated.max_send_data_segment_len, 65_536);
    assert_eq!(negotiated.target_alias.as_deref(), Some("a disk"));
    assert_eq!(negotiated.target_portal_group_tag, Some(7));
}

#[test]
fn what_the_target_must_not_say_is_named() {
    let cases = [
        ("InitiatorName", "iqn.x", "WrongSender"),
        ("SessionType", "Normal", "WrongSender"),
        ("SendTargets", "All", "WrongSender"),
        ("TargetName", "iqn.x", "WrongStage"),
        ("AuthMethod", "CHAP", "WrongStage"),
        ("MaxRecvDataSegmentLength", "511", "Value"),
        ("MaxRecvDataSegmentLength", "16777216", "Value"),
        ("MaxRecvDataSegmentLength", "lots", "Value"),
        ("TargetPortalGroupTag", "65536", "Value"),
        ("DataDigest", "None,None", "Value"),
        ("DataDigest", "CRC32C", "Answer"),
        ("DataDigest", "CRC64", "Value"),
        ("InitialR2T", "yes", "Value"),
        ("TaskReporting", "Reject", "Unasked"),
        ("X-org.example", "NotUnderstood", "Unasked"),
    ];
    for (key, value, error) in cases {
        let (mut negotiation, _) = normal(&Offer::default());
        let refused = receive(&mut negotiation, key, value).unwrap_err();
        let text = format!("{refused:?}");
        assert!(text.starts_with(error) && text.contains(key) && text.contains(value), "{text}");
    }
    let (mut negotiation, _) = normal(&Offer::default());
    let early = negotiation.receive(Stage::Security, &Pair::new("MaxBurstLength", "512"));
    assert!(matches!(early, Err(KeyError::WrongStage { .. })));
    // A first burst that is longer than a burst.
    let (mut negotiation, offers) = normal(&Offer::default());
    answer_all_but(&mut negotiation, &offers, "MaxBurstLength");
    assert_eq!(receive(&mut negotiation, "MaxBurstLength", "4096"), Ok(None));
    let key = "FirstBurstLength".to_owned();
    let value = "65536".to_owned();
    assert_eq!(negotiation.finish(), Err(KeyError::Value { key, value }));
}

#[test]
fn offers_that_no_rule_allows_are_refused() {
    let bad = [
        Offer { header_digest: Vec::new(), ..Offer::default() },
        Offer { data_digest: vec![DigestKind::None; 2], ..Offer::default() },
        Offer { max_connections: 0, ..Offer::default() },
        Offer { max_recv_data_segment_len: 511, ..Offer::default() },
        Offer { max_recv_data_segment_len: 1 << 24, ..Offer::default() },
        Offer { max_burst_len: 1 << 24, ..Offer::default() },
        Offer { first_burst_len: 262_145, ..Offer::default() },
        Offer { time_to_wait_secs: 3601, ..Offer::default() },
        Offer { error_recovery_level: 3, ..Offer::default() },
        Offer { task_reporting: Vec::new(), ..Offer::default() },
        // RFC3720 and ResponseFence have to be among them.
        Offer { task_reporting: vec![TaskReporting::FastAbort], ..Offer::default() },
        Offer {
            task_reporting: vec![TaskReporting::FastAbort, TaskReporting::Rfc3720],
            ..Offer::default()
        },
    ];
    for offer in bad {
        let refused = Negotiation::new(SessionKind::Normal, &offer);
        assert!(matches!(refused, Err(KeyError::Offer { .. })), "{offer:?}");
    }
}

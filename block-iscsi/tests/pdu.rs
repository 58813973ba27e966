//! Every PDU is parsed as it is printed, stands where RFC 7143 puts it, and refuses what cannot be.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, and these helpers run in tests only"
)]

use block_iscsi::pdu::async_event::{AsyncEvent, AsyncMessage};
use block_iscsi::pdu::bhs::{BHS_LEN, Opcode};
use block_iscsi::pdu::data::{AckRequest, DataIn, DataInEnd, DataOut, ReadyToTransfer, Sequence};
use block_iscsi::pdu::fields::{
    DataLen, Delivery, NO_TAG, RequestSerials, Residual, ResponseSerials,
};
use block_iscsi::pdu::login::{
    LoginAnswer, LoginRequest, LoginResponse, LoginStage, LoginStatus, LoginStep,
};
use block_iscsi::pdu::logout::{LogoutReason, LogoutRequest, LogoutResponse, LogoutResult};
use block_iscsi::pdu::nop::{NopIn, NopOut};
use block_iscsi::pdu::reject::{Reject, RejectReason};
use block_iscsi::pdu::scsi::{
    Cdb, CommandOutcome, Direction, ScsiCommand, ScsiResponse, SenseSegment, TaskAttribute,
    Unsolicited,
};
use block_iscsi::pdu::snack::{SnackKind, SnackRequest};
use block_iscsi::pdu::task_mgmt::{
    TaskFunction, TaskManagementRequest, TaskManagementResponse, TaskResult,
};
use block_iscsi::pdu::text::{TextReply, TextRequest, TextResponse, TextStep};
use block_iscsi::pdu::{Pdu, PduError, Request, Response};
use block_iscsi::serial::Serial;
use proptest::prelude::*;

type Lun = [u8; 8];

/// Numbers at their borders as often as others.
fn number() -> impl Strategy<Value = u32> {
    let edges = vec![0, 1, 0x7fff_ffff, 0x8000_0000, NO_TAG - 1, NO_TAG];
    prop_oneof![prop::sample::select(edges), any::<u32>()]
}

fn small() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), Just(u16::MAX), any::<u16>()]
}

fn serial() -> impl Strategy<Value = Serial> {
    number().prop_map(Serial::new)
}

fn tag() -> impl Strategy<Value = u32> {
    number().prop_map(|tag| tag.min(NO_TAG - 1))
}

fn optional_tag() -> impl Strategy<Value = Option<u32>> {
    prop::option::of(tag())
}

fn lun() -> impl Strategy<Value = Lun> {
    any::<Lun>()
}

fn data_len() -> impl Strategy<Value = DataLen> {
    let edges = prop::sample::select(vec![0, 1, 3, 4, 5, 8192, (1 << 24) - 1]);
    prop_oneof![edges, 0..1_u32 << 24].prop_map(|len| DataLen::new(len).unwrap())
}

fn delivery() -> impl Strategy<Value = Delivery> {
    prop::sample::select(vec![Delivery::Ordered, Delivery::Immediate])
}

fn request_serials() -> impl Strategy<Value = RequestSerials> {
    (serial(), serial()).prop_map(|(cmd_sn, exp_stat_sn)| RequestSerials { cmd_sn, exp_stat_sn })
}

fn response_serials() -> impl Strategy<Value = ResponseSerials> {
    (serial(), serial(), serial()).prop_map(|(stat_sn, exp_cmd_sn, max_cmd_sn)| ResponseSerials {
        stat_sn,
        exp_cmd_sn,
        max_cmd_sn,
    })
}

fn residual() -> impl Strategy<Value = Residual> {
    prop_oneof![
        Just(Residual::None),
        number().prop_map(Residual::Underflow),
        number().prop_map(Residual::Overflow)
    ]
}

fn sequence() -> impl Strategy<Value = Sequence> {
    prop::sample::select(vec![Sequence::GoesOn, Sequence::Ends])
}

fn login_step() -> impl Strategy<Value = LoginStep> {
    let stages = [LoginStage::Security, LoginStage::Operational];
    let mut steps = vec![LoginStep::ToOperational];
    for stage in stages {
        steps.extend([
            LoginStep::Partial(stage),
            LoginStep::Stay(stage),
            LoginStep::ToFullFeature(stage),
        ]);
    }
    prop::sample::select(steps)
}

fn nop_out() -> impl Strategy<Value = Request> {
    (delivery(), lun(), optional_tag(), optional_tag(), request_serials(), data_len()).prop_map(
        |(delivery, lun, task_tag, target_tag, serials, data_len)| {
            let delivery = task_tag.map_or(Delivery::Immediate, |_| delivery);
            NopOut { delivery, lun, task_tag, target_tag, serials, data_len }.into()
        },
    )
}

fn scsi_command() -> impl Strategy<Value = Request> {
    let unsolicited = prop::sample::select(vec![Unsolicited::None, Unsolicited::Follows]);
    let direction = prop_oneof![
        Just(Direction::None),
        Just(Direction::Read),
        unsolicited.clone().prop_map(Direction::Write),
        (unsolicited, number()).prop_map(|(write, read_len)| Direction::Both { write, read_len }),
    ];
    let cdb = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..=16),
        prop::collection::vec(any::<u8>(), 17..=260)
    ];
    let head = (delivery(), direction, prop::sample::select(TaskAttribute::ALL), lun());
    (head, tag(), number(), request_serials(), cdb, data_len()).prop_map(
        |(head, task_tag, expected_len, serials, cdb, data_len)| {
            let (delivery, direction, attribute, lun) = head;
            let data_len = match direction {
                Direction::None | Direction::Read => DataLen::ZERO,
                _ => data_len.min(DataLen::new(expected_len).unwrap_or(DataLen::MAX)),
            };
            let cdb = Cdb::new(&cdb).unwrap();
            ScsiCommand {
                delivery,
                direction,
                attribute,
                lun,
                task_tag,
                expected_len,
                serials,
                cdb,
                data_len,
            }
            .into()
        },
    )
}

fn task_management() -> impl Strategy<Value = Request> {
    let function = prop_oneof![
        (number(), serial())
            .prop_map(|(task_tag, cmd_sn)| TaskFunction::AbortTask { task_tag, cmd_sn }),
        prop::sample::select(vec![
            TaskFunction::AbortTaskSet,
            TaskFunction::ClearAca,
            TaskFunction::ClearTaskSet,
            TaskFunction::LogicalUnitReset,
            TaskFunction::TargetWarmReset,
            TaskFunction::TargetColdReset,
        ]),
        (number(), serial()).prop_map(|(task_tag, exp_data_sn)| TaskFunction::TaskReassign {
            task_tag,
            exp_data_sn
        }),
    ];
    (delivery(), function, lun(), number(), request_serials()).prop_map(
        |(delivery, function, lun, task_tag, serials)| {
            TaskManagementRequest { delivery, function, lun, task_tag, serials }.into()
        },
    )
}

fn login_request() -> impl Strategy<Value = Request> {
    let versions = (any::<u8>(), any::<u8>());
    (
        login_step(),
        versions,
        any::<[u8; 6]>(),
        small(),
        number(),
        small(),
        request_serials(),
        data_len(),
    )
        .prop_map(|(step, (a, b), isid, tsih, task_tag, cid, serials, data_len)| {
            LoginRequest {
                step,
                version_max: a.max(b),
                version_min: a.min(b),
                isid,
                tsih,
                task_tag,
                cid,
                serials,
                data_len,
            }
            .into()
        })
}

fn text_request() -> impl Strategy<Value = Request> {
    let step = prop::sample::select(vec![TextStep::Partial, TextStep::Open, TextStep::Final]);
    (delivery(), step, lun(), number(), optional_tag(), request_serials(), data_len()).prop_map(
        |(delivery, step, lun, task_tag, target_tag, serials, data_len)| {
            TextRequest { delivery, step, lun, task_tag, target_tag, serials, data_len }.into()
        },
    )
}

fn data_out() -> impl Strategy<Value = Request> {
    let numbers = (serial(), serial(), number());
    (sequence(), lun(), number(), optional_tag(), numbers, data_len()).prop_map(
        |(sequence, lun, task_tag, target_tag, (exp_stat_sn, data_sn, buffer_offset), data_len)| {
            DataOut {
                sequence,
                lun,
                task_tag,
                target_tag,
                exp_stat_sn,
                data_sn,
                buffer_offset,
                data_len,
            }
            .into()
        },
    )
}

fn logout_request() -> impl Strategy<Value = Request> {
    let reason = prop::sample::select(LogoutReason::ALL);
    (delivery(), reason, number(), small(), request_serials()).prop_map(
        |(delivery, reason, task_tag, cid, serials)| {
            LogoutRequest { delivery, reason, task_tag, cid, serials }.into()
        },
    )
}

fn snack_request() -> impl Strategy<Value = Request> {
    let kind = prop::sample::select(SnackKind::ALL);
    (kind, lun(), optional_tag(), optional_tag(), serial(), serial(), number()).prop_map(
        |(kind, lun, task_tag, target_tag, exp_stat_sn, first, count)| {
            SnackRequest { kind, lun, task_tag, target_tag, exp_stat_sn, first, count }.into()
        },
    )
}

fn requests() -> impl Strategy<Value = Request> {
    prop_oneof![
        nop_out(),
        scsi_command(),
        task_management(),
        login_request(),
        text_request(),
        data_out(),
        logout_request(),
        snack_request(),
    ]
}

fn nop_in() -> impl Strategy<Value = Response> {
    (lun(), optional_tag(), optional_tag(), response_serials(), data_len()).prop_map(
        |(lun, task_tag, target_tag, serials, data_len)| {
            NopIn { lun, task_tag, target_tag, serials, data_len }.into()
        },
    )
}

fn scsi_response() -> impl Strategy<Value = Response> {
    let outcome = prop_oneof![
        (any::<u8>(), residual(), residual()).prop_map(|(status, residual, read_residual)| {
            CommandOutcome::Completed { status, residual, read_residual }
        }),
        Just(CommandOutcome::TargetFailure),
        (0x80..=0xff_u8).prop_map(CommandOutcome::Vendor),
    ];
    let snack_tag = optional_tag().prop_map(|tag| tag.filter(|tag| *tag != 0));
    (outcome, number(), snack_tag, response_serials(), serial(), data_len()).prop_map(
        |(outcome, task_tag, snack_tag, serials, exp_data_sn, data_len)| {
            ScsiResponse { outcome, task_tag, snack_tag, serials, exp_data_sn, data_len }.into()
        },
    )
}

fn task_response() -> impl Strategy<Value = Response> {
    (prop::sample::select(TaskResult::ALL), number(), response_serials()).prop_map(
        |(result, task_tag, serials)| TaskManagementResponse { result, task_tag, serials }.into(),
    )
}

fn login_response() -> impl Strategy<Value = Response> {
    let answer = prop_oneof![
        login_step().prop_map(LoginAnswer::Accepted),
        prop::sample::select(LoginStatus::ALL).prop_map(LoginAnswer::Refused),
        (1..=3_u8, 0x10..=0xff_u8).prop_map(|(class, detail)| {
            LoginAnswer::Refused(LoginStatus::Other { class, detail })
        }),
    ];
    let versions = (any::<u8>(), any::<u8>());
    (answer, versions, any::<[u8; 6]>(), small(), number(), response_serials(), data_len())
        .prop_map(
            |(answer, (version_max, version_active), isid, tsih, task_tag, serials, data_len)| {
                LoginResponse {
                    answer,
                    version_max,
                    version_active,
                    isid,
                    tsih,
                    task_tag,
                    serials,
                    data_len,
                }
                .into()
            },
        )
}

fn text_response() -> impl Strategy<Value = Response> {
    let reply = prop_oneof![
        tag().prop_map(|target_tag| TextReply::Partial { target_tag }),
        tag().prop_map(|target_tag| TextReply::Open { target_tag }),
        Just(TextReply::Final),
    ];
    (reply, lun(), number(), response_serials(), data_len()).prop_map(
        |(reply, lun, task_tag, serials, data_len)| {
            TextResponse { reply, lun, task_tag, serials, data_len }.into()
        },
    )
}

fn data_in() -> impl Strategy<Value = Response> {
    let status = any::<u8>().prop_filter("CHECK CONDITION", |status| *status != 2);
    let end = prop_oneof![
        sequence().prop_map(DataInEnd::Open),
        (status, residual()).prop_map(|(status, residual)| DataInEnd::Status { status, residual }),
    ];
    let ack = (lun(), tag()).prop_map(|(lun, target_tag)| AckRequest { lun, target_tag });
    let numbers = (number(), serial(), number());
    (end, prop::option::of(ack), numbers, response_serials(), data_len()).prop_map(
        |(end, acknowledge, (task_tag, data_sn, buffer_offset), serials, data_len)| {
            DataIn { end, acknowledge, task_tag, serials, data_sn, buffer_offset, data_len }.into()
        },
    )
}

fn logout_response() -> impl Strategy<Value = Response> {
    let result = prop::sample::select(LogoutResult::ALL);
    (result, number(), response_serials(), small(), small()).prop_map(
        |(result, task_tag, serials, time_to_wait_secs, time_to_retain_secs)| {
            LogoutResponse { result, task_tag, serials, time_to_wait_secs, time_to_retain_secs }
                .into()
        },
    )
}

fn ready_to_transfer() -> impl Strategy<Value = Response> {
    (lun(), number(), tag(), response_serials(), serial(), number(), number()).prop_map(
        |(lun, task_tag, target_tag, serials, r2t_sn, offset, len)| {
            let buffer_offset = offset.min(u32::MAX - 1);
            let desired_len = len.clamp(1, u32::MAX - buffer_offset);
            ReadyToTransfer {
                lun,
                task_tag,
                target_tag,
                serials,
                r2t_sn,
                buffer_offset,
                desired_len,
            }
            .into()
        },
    )
}

fn async_message() -> impl Strategy<Value = Response> {
    let event = (0..7, any::<u8>(), small(), small(), small()).prop_map(
        |(which, code, first, second, third)| match which {
            0 => AsyncEvent::Scsi,
            1 => AsyncEvent::LogoutRequested { within_secs: third },
            2 => AsyncEvent::DropsConnection {
                cid: first,
                time_to_wait_secs: second,
                time_to_retain_secs: third,
            },
            3 => AsyncEvent::DropsAllConnections {
                time_to_wait_secs: second,
                time_to_retain_secs: third,
            },
            4 => AsyncEvent::NegotiationRequested { within_secs: third },
            5 => AsyncEvent::TasksTerminated,
            _ => AsyncEvent::Vendor { event: 248 | code, code, parameters: [first, second, third] },
        },
    );
    (event, lun(), response_serials(), data_len()).prop_map(|(event, lun, serials, data_len)| {
        AsyncMessage { event, lun, serials, data_len }.into()
    })
}

fn reject() -> impl Strategy<Value = Response> {
    (prop::sample::select(RejectReason::ALL), response_serials(), serial(), data_len()).prop_map(
        |(reason, serials, data_sn, data_len)| Reject { reason, serials, data_sn, data_len }.into(),
    )
}

fn responses() -> impl Strategy<Value = Response> {
    prop_oneof![
        nop_in(),
        scsi_response(),
        task_response(),
        login_response(),
        text_response(),
        data_in(),
        logout_response(),
        ready_to_transfer(),
        async_message(),
        reject(),
    ]
}

fn request_bytes(request: &Request) -> Vec<u8> {
    match request {
        Request::ScsiCommand(command) => command.to_bytes(),
        other => other.to_bhs().to_bytes().to_vec(),
    }
}

/// Headers of every opcode whose other bytes are mostly zeroes or ones, so that many are valid.
fn hostile_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => Just(0_u8),
        1 => Just(0xff),
        1 => prop::sample::select(vec![1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0xc0]),
        1 => any::<u8>(),
    ];
    (prop::sample::select(Opcode::ALL), any::<bool>(), prop::collection::vec(byte, 47..120))
        .prop_map(|(opcode, immediate, rest)| {
            let first = opcode.code() | if immediate { 0x40 } else { 0 };
            [vec![first], rest].concat()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn requests_are_parsed_as_they_are_printed(request in requests()) {
        let bytes = request_bytes(&request);
        prop_assert_eq!(Request::parse(&bytes), Ok(request.clone()));
        prop_assert_eq!(bytes.len() % 4, 0);
        // What follows the header is not touched, and every byte of the header is needed.
        let longer = [&bytes[..], &[0xff; 9]].concat();
        prop_assert_eq!(Request::parse(&longer), Ok(request));
        prop_assert!(Request::parse(&bytes[..bytes.len() - 1]).is_err());
        prop_assert!(Response::parse(&bytes).is_err());
    }

    #[test]
    fn responses_are_parsed_as_they_are_printed(response in responses()) {
        let bytes = response.to_bhs().to_bytes();
        prop_assert_eq!(Response::parse(&bytes), Ok(response.clone()));
        prop_assert!(Response::parse(&bytes[..47]).is_err());
        prop_assert!(Request::parse(&bytes).is_err());
    }

    #[test]
    fn any_bytes_give_a_pdu_that_prints_back_or_an_error(bytes in hostile_bytes()) {
        if let Ok(request) = Request::parse(&bytes) {
            prop_assert_eq!(Request::parse(&request_bytes(&request)), Ok(request));
        }
        if let Ok(response) = Response::parse(&bytes) {
            prop_assert_eq!(Response::parse(&response.to_bhs().to_bytes()), Ok(response));
        }
    }

    #[test]
    fn segments_with_sense_data_are_parsed_as_they_are_printed(
        sense in prop::collection::vec(any::<u8>(), 0..300),
        rest in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let segment = SenseSegment { sense: &sense, rest: &rest };
        let bytes = segment.to_bytes().unwrap();
        prop_assert_eq!(SenseSegment::parse(&bytes), Ok(segment));
    }

    #[test]
    fn any_bytes_give_sense_data_or_an_error(data in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(segment) = SenseSegment::parse(&data) {
            prop_assert!(data.is_empty() || segment.sense.len() + segment.rest.len() + 2 == data.len());
        }
    }
}

/// A PDU of this opcode with byte 1, and the other bytes that are given with their places.
fn bytes_of(opcode: u8, flags: u8, places: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; BHS_LEN];
    bytes[0] = opcode;
    bytes[1] = flags;
    for (at, value) in places {
        bytes[*at..at + value.len()].copy_from_slice(value);
    }
    bytes
}

/// Bytes and where they stand.
type Place = (usize, &'static [u8]);
/// Opcode, byte 1 and other bytes of a header; the field that is refused, and its value.
type Case = (u8, u8, &'static [Place], &'static str, u32);

const NONE: &[u8] = &[0xff; 4];

#[test]
fn reserved_codes_and_bits_that_exclude_each_other_are_named() {
    let requests: &[Case] = &[
        (0x40, 0x00, &[], "F", 0),
        (0x00, 0x80, &[(16, NONE)], "I", 0),
        (0x01, 0x00, &[], "F", 0),
        (0x01, 0x40, &[], "F", 0),
        (0x01, 0xe0, &[], "R and W", 0x60),
        (0x01, 0x85, &[], "ATTR", 5),
        (0x01, 0x80, &[(7, &[1])], "DataSegmentLength", 1),
        (0x01, 0xa0, &[(7, &[9]), (23, &[8])], "DataSegmentLength", 9),
        (0x02, 0x80, &[(20, NONE)], "Function", 0),
        (0x02, 0x89, &[(20, NONE)], "Function", 9),
        (0x02, 0x85, &[], "Referenced Task Tag", 0),
        (0x02, 0x81, &[(4, &[1])], "TotalAHSLength", 1),
        (0x03, 0x00, &[], "I", 0),
        (0x43, 0xc0, &[], "T and C", 0xc0),
        (0x43, 0x08, &[], "CSG", 2),
        (0x43, 0x80, &[], "NSG", 0),
        (0x43, 0x85, &[], "NSG", 1),
        (0x43, 0x86, &[], "NSG", 2),
        (0x43, 0x00, &[(3, &[1])], "Version-min", 1),
        (0x04, 0xc0, &[], "F and C", 0xc0),
        (0x06, 0x83, &[], "Reason Code", 3),
        (0x06, 0x80, &[(5, &[1])], "DataSegmentLength", 0x1_0000),
        (0x10, 0x84, &[], "Type", 4),
    ];
    for (opcode, flags, places, field, value) in requests {
        let refused = PduError::Field { field, value: *value };
        // Four bytes more, for the one that claims additional segments.
        let bytes = [bytes_of(*opcode, *flags, places), vec![0; 4]].concat();
        assert_eq!(Request::parse(&bytes), Err(refused));
    }
    let responses: &[Case] = &[
        (0x20, 0x00, &[], "F", 0),
        (0x21, 0x86, &[], "O and U", 6),
        (0x21, 0x98, &[], "o and u", 0x18),
        (0x21, 0x80, &[(2, &[2])], "Response", 2),
        (0x21, 0x80, &[(2, &[0x7f])], "Response", 0x7f),
        (0x22, 0x80, &[(2, &[7])], "Response", 7),
        (0x22, 0x80, &[(2, &[254])], "Response", 254),
        (0x23, 0x00, &[(36, &[0, 1])], "Status", 1),
        (0x23, 0x00, &[(36, &[4, 0])], "Status", 0x400),
        (0x24, 0x00, &[(20, NONE)], "Target Transfer Tag", NO_TAG),
        (0x24, 0x40, &[(20, NONE)], "Target Transfer Tag", NO_TAG),
        (0x25, 0x01, &[], "F", 0),
        (0x25, 0x87, &[], "O and U", 6),
        (0x25, 0x81, &[(3, &[2])], "Status", 2),
        (0x26, 0x80, &[(2, &[4])], "Response", 4),
        (0x31, 0x80, &[], "Desired Data Transfer Length", 0),
        (0x31, 0x80, &[(40, &[0xff; 8])], "Desired Data Transfer Length", NO_TAG),
        (0x31, 0x80, &[(20, NONE)], "Target Transfer Tag", NO_TAG),
        (0x32, 0x80, &[(36, &[6])], "AsyncEvent", 6),
        (0x32, 0x80, &[(36, &[247])], "AsyncEvent", 247),
        (0x3f, 0x80, &[(2, &[1])], "Reason", 1),
        (0x3f, 0x80, &[(2, &[13])], "Reason", 13),
        (0x3f, 0x80, &[(2, &[2]), (4, &[255])], "TotalAHSLength", 255),
    ];
    for (opcode, flags, places, field, value) in responses {
        let refused = PduError::Field { field, value: *value };
        assert_eq!(Response::parse(&bytes_of(*opcode, *flags, places)), Err(refused));
    }
}

#[test]
fn reserved_bits_are_ignored_and_not_printed() {
    let clean = bytes_of(0x26, 0x80, &[]);
    let noisy = bytes_of(0x26, 0xff, &[(3, &[0xff]), (8, &[0xff; 8]), (20, NONE), (36, NONE)]);
    let parsed = Response::parse(&noisy).unwrap();
    assert_eq!(Response::parse(&clean), Ok(parsed.clone()));
    assert_eq!(parsed.to_bhs().to_bytes()[..], clean[..]);
    // Residual counts mean nothing without their bits, nor does a status without S.
    let data_in = bytes_of(0x25, 0x80, &[(3, &[2]), (20, NONE), (44, NONE)]);
    let data_in = DataIn::parse(&data_in).unwrap();
    assert_eq!(data_in.end, DataInEnd::Open(Sequence::Ends));
}

/// What RFC 7143 tells a receiver to ignore does not make a PDU wrong.
#[test]
fn what_has_no_meaning_is_ignored() {
    // O and U without S (section 11.7.3); A without a tag (section 11.7.2).
    let data_in = DataIn::parse(&bytes_of(0x25, 0xc6, &[(20, NONE)])).unwrap();
    assert_eq!(data_in.end, DataInEnd::Open(Sequence::Ends));
    assert_eq!(data_in.acknowledge, None);
    // The flags of a response that is not of a completed command (section 11.4.3).
    let failed = ScsiResponse::parse(&bytes_of(0x21, 0x9e, &[(2, &[1, 2])])).unwrap();
    assert_eq!(failed.outcome, CommandOutcome::TargetFailure);
    // No SNACK Tag is 0 (section 11.4.4).
    assert_eq!(failed.snack_tag, None);
    assert_eq!(failed.to_bytes()[20..24], [0; 4]);
    let tagged = ScsiResponse::parse(&bytes_of(0x21, 0x80, &[(23, &[7])])).unwrap();
    assert_eq!(tagged.snack_tag, Some(7));
    // The target tag of a final text response (section 11.10.4).
    let text = TextResponse::parse(&bytes_of(0x24, 0x80, &[(23, &[7])])).unwrap();
    assert_eq!(text.reply, TextReply::Final);
}

#[test]
fn all_events_of_vendors_are_taken() {
    for event in 248..=255_u8 {
        let mut bytes = bytes_of(0x32, 0x80, &[(16, NONE), (37, &[5])]);
        bytes[36] = event;
        let message = AsyncMessage::parse(&bytes).unwrap();
        assert_eq!(message.event, AsyncEvent::Vendor { event, code: 5, parameters: [0; 3] });
        assert_eq!(message.to_bytes()[..], bytes[..]);
    }
}

#[test]
fn the_command_of_the_rfc_stands_where_the_rfc_puts_it() {
    // RFC 7143, appendix A.4: the READ(10) whose digest is given.
    let command = ScsiCommand {
        delivery: Delivery::Ordered,
        direction: Direction::Read,
        attribute: TaskAttribute::Untagged,
        lun: [0; 8],
        task_tag: 0x1400_0000,
        expected_len: 0x400,
        serials: RequestSerials { cmd_sn: Serial::new(0x14), exp_stat_sn: Serial::new(0x18) },
        cdb: Cdb::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0]).unwrap(),
        data_len: DataLen::ZERO,
    };
    let bytes = command.to_bytes();
    assert_eq!(block_iscsi::pdu::digest::digest(&bytes), [0x56, 0x3a, 0x96, 0xd9]);
}

#[test]
fn additional_header_segments_stand_where_the_rfc_puts_them() {
    let cdb: Vec<u8> = (0..33).collect();
    let command = ScsiCommand {
        delivery: Delivery::Immediate,
        direction: Direction::Both { write: Unsolicited::None, read_len: 0x0102_0304 },
        attribute: TaskAttribute::Simple,
        lun: [0, 7, 0, 0, 0, 0, 0, 0],
        task_tag: 1,
        expected_len: 8,
        serials: RequestSerials::default(),
        cdb: Cdb::new(&cdb).unwrap(),
        data_len: DataLen::ZERO,
    };
    let bytes = command.to_bytes();
    assert_eq!((bytes[0], bytes[1], bytes[4]), (0x41, 0xe1, 8));
    // AHSLength counts the byte behind the type: 33 - 15, and 5.
    assert_eq!(bytes[48..52], [0, 18, 1, 0]);
    assert_eq!(bytes[52..69], cdb[16..]);
    assert_eq!(bytes[69..], [0, 0, 0, 0, 5, 2, 0, 1, 2, 3, 4]);
}

#[test]
fn hostile_additional_header_segments_are_refused() {
    let with = |flags: u8, ahs: &[u8]| {
        let words = u8::try_from(ahs.len() / 4).unwrap();
        ScsiCommand::parse(&[&bytes_of(1, flags, &[(4, &[words])]), ahs].concat())
    };
    let field = |field, value| Err(PduError::Field { field, value });
    assert_eq!(with(0x80, &[0, 0, 1, 0]), field("AHSLength", 0));
    assert_eq!(with(0x80, &[0, 1, 1, 0]), field("AHSLength", 1));
    assert_eq!(with(0x80, &[0xff, 0xff, 1, 0, 1, 1, 1, 1]), field("AHSLength", 0xffff));
    assert_eq!(with(0x80, &[0, 6, 1, 0, 1, 1, 1, 1]), field("AHSLength", 6));
    assert_eq!(with(0x80, &[0, 5, 3, 0, 1, 1, 1, 1]), field("AHSType", 3));
    assert_eq!(with(0xe0, &[0, 4, 2, 0, 1, 1, 1, 1]), field("AHSLength", 4));
    // A length to read belongs to commands that use both ways, and comes once.
    assert_eq!(with(0xc0, &[0, 5, 2, 0, 1, 1, 1, 1]), field("AHSType", 2));
    let twice = [0, 5, 2, 0, 1, 1, 1, 1, 0, 5, 2, 0, 1, 1, 1, 1];
    assert_eq!(with(0xe0, &twice), field("AHSType", 2));
    // 248 bytes behind the sixteenth are more than a CDB has.
    let mut long = vec![1; 252];
    long[..4].copy_from_slice(&[0, 249, 1, 0]);
    assert_eq!(with(0x80, &long), field("AHSLength", 249));
    let short = PduError::Short { field: "AHS", needed: 8, len: 4 };
    let cut = [&bytes_of(1, 0x80, &[(4, &[2])])[..], &[0, 5, 2, 0]].concat();
    assert_eq!(ScsiCommand::parse(&cut), Err(short));
    assert_eq!(Cdb::new(&[0; 261]), Err(PduError::Long { field: "CDB", len: 261, limit: 260 }));
    assert_eq!(Cdb::new(&[]), Err(PduError::Short { field: "CDB", needed: 1, len: 0 }));
}

#[test]
fn sense_data_that_is_cut_off_is_refused() {
    let short = PduError::Short { field: "SenseLength", needed: 2, len: 1 };
    assert_eq!(SenseSegment::parse(&[0]), Err(short));
    let short = PduError::Short { field: "Sense Data", needed: 3, len: 2 };
    assert_eq!(SenseSegment::parse(&[0, 3, 1, 2]), Err(short));
    let sense = vec![0; 65536];
    assert!(SenseSegment { sense: &sense, rest: &[] }.to_bytes().is_err());
}

#[test]
fn a_whole_pdu_has_its_data_and_padding() {
    let nop = NopIn {
        lun: [0; 8],
        task_tag: Some(5),
        target_tag: None,
        serials: ResponseSerials::default(),
        data_len: DataLen::of(b"hello").unwrap(),
    };
    let mut out = vec![9];
    Response::from(nop.clone()).append_to(b"hello", &mut out).unwrap();
    assert_eq!(out[1..49], nop.to_bytes());
    assert_eq!(out[49..], *b"hello\0\0\0");
    let refused = PduError::Field { field: "DataSegmentLength", value: 5 };
    assert_eq!(Response::from(nop).append_to(b"hell", &mut out), Err(refused));
    assert_eq!(out.len(), 57);
}

#[test]
fn login_statuses_have_their_classes() {
    for status in LoginStatus::ALL {
        assert_eq!(LoginStatus::from_code(status.code()), Ok(*status));
        assert!((1..=3).contains(&status.class()));
    }
    let other = LoginStatus::Other { class: 2, detail: 0x7f };
    assert_eq!(LoginStatus::from_code([2, 0x7f]), Ok(other));
    assert_eq!(LoginStatus::TargetMovedPermanently.class(), 1);
}

//! CHAP, one-way and mutual, from the initiator's side (RFC 1994; RFC 7143, section 12.1.3).
//!
//! Random bytes come from the caller. Secrets are zeroed when they are dropped, compared in
//! constant time, and do not appear in `Debug`. Refused are: the target sending our own challenge
//! or our own response back, and one secret for both directions (RFC 7143, section 9.2.1).

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::keys::value::{BINARY_LEN_MAX, hex, parse_binary, parse_number};
use crate::keys::{Pair, text};

/// Length of our own challenges in bytes.
pub const CHALLENGE_LEN: usize = 32;

/// How a response is computed.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug)]
pub enum Algorithm {
    /// MD5, which every target knows.
    Md5,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA3-256.
    Sha3,
}

impl Algorithm {
    /// All of them, the strongest first.
    pub const ALL: &[Self] = &[Self::Sha3, Self::Sha256, Self::Sha1, Self::Md5];

    /// Its number in CHAP_A (IANA's registry of PPP authentication algorithms).
    pub const fn code(self) -> u8 {
        match self {
            Self::Md5 => 5,
            Self::Sha1 => 6,
            Self::Sha256 => 7,
            Self::Sha3 => 8,
        }
    }

    /// The algorithm of this number.
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.iter().copied().find(|algorithm| u64::from(algorithm.code()) == code)
    }

    /// The response to a challenge: the hash of identifier, secret and challenge (RFC 1994,
    /// section 4.1, of MD5; the other algorithms do the same).
    pub fn response(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        let parts: [&[u8]; 3] = [&[identifier], &secret.0, challenge];
        match self {
            Self::Md5 => hash::<md5::Md5>(parts),
            Self::Sha1 => hash::<sha1::Sha1>(parts),
            Self::Sha256 => hash::<sha2::Sha256>(parts),
            Self::Sha3 => hash::<sha3::Sha3_256>(parts),
        }
    }
}

fn hash<D: md5::Digest>(parts: [&[u8]; 3]) -> Vec<u8> {
    let mut hasher = D::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().to_vec()
}

/// A secret. Comparing two takes the same time wherever they differ.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// The secret of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Self(Zeroizing::new(bytes.to_vec()))
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who the target has to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetCredentials {
    /// The name that it has to give, if it matters.
    pub user: Option<String>,
    /// Its secret.
    pub secret: Secret,
}

/// Who we are, and who the target has to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChapConfig {
    /// Our name.
    pub user: String,
    /// Our secret.
    pub secret: Secret,
    /// What is offered, in the order of preference. RFC 7143 wants MD5 to be among them always;
    /// whether it is, is the caller's decision.
    pub algorithms: Vec<Algorithm>,
    /// Set for mutual authentication.
    pub target: Option<TargetCredentials>,
}

/// What has to be new for each login: bytes from a source of randomness.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nonce {
    /// CHAP_I of our challenge.
    pub identifier: u8,
    /// CHAP_C, our challenge.
    pub challenge: [u8; CHALLENGE_LEN],
}

/// Why CHAP failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChapError {
    /// The user is empty, too long, or has control characters.
    #[error("the CHAP user has {len} bytes or cannot be sent")]
    User {
        /// Its length in bytes.
        len: usize,
    },
    /// No algorithm is offered.
    #[error("no CHAP algorithm is offered")]
    NoAlgorithm,
    /// Both directions have the same secret.
    #[error("the target's CHAP secret is the initiator's")]
    SameSecret,
    /// The target left a key out.
    #[error("{key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// The target sent what has no place here.
    #[error("{key} is not expected")]
    Unexpected {
        /// The key.
        key: String,
    },
    /// A value that the key cannot have, or an algorithm that was not offered.
    #[error("{key} cannot be {value:?}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The target's challenge is ours.
    #[error("the target sent our own challenge back")]
    ReflectedChallenge,
    /// The target's response is ours.
    #[error("the target sent our own response back")]
    ReflectedResponse,
    /// The target has another name.
    #[error("the target calls itself {name:?}")]
    TargetName {
        /// Its name.
        name: String,
    },
    /// The target does not know its secret.
    #[error("the target's CHAP response is wrong")]
    TargetResponse,
}

#[derive(Clone, Debug)]
enum State {
    Start,
    Offered,
    /// Our response is on its way; the target's is checked against the expected one. Both are
    /// kept as secrets are.
    Responded {
        own: Secret,
        expected: Option<Secret>,
    },
    Done,
}

/// An authentication that is under way: `offer`, `respond`, `finish`, in this order.
#[derive(Clone, Debug)]
pub struct Chap {
    config: ChapConfig,
    nonce: Nonce,
    state: State,
}

impl Chap {
    /// An authentication in which nothing has been said. The nonce must be new.
    pub fn new(config: ChapConfig, nonce: Nonce) -> Result<Self, ChapError> {
        let user = &config.user;
        let len_allowed = (1..=text::VALUE_LEN_MAX).contains(&user.len());
        if !len_allowed || user.contains(char::is_control) {
            return Err(ChapError::User { len: user.len() });
        }
        if config.algorithms.is_empty() {
            return Err(ChapError::NoAlgorithm);
        }
        if config.target.as_ref().is_some_and(|target| target.secret == config.secret) {
            return Err(ChapError::SameSecret);
        }
        Ok(Self { config, nonce, state: State::Start })
    }

    /// The algorithms that we know.
    pub fn offer(&mut self) -> Vec<Pair> {
        self.state = State::Offered;
        let mut codes: Vec<String> = Vec::new();
        for algorithm in &self.config.algorithms {
            let code = algorithm.code().to_string();
            if !codes.contains(&code) {
                codes.push(code);
            }
        }
        vec![Pair::new("CHAP_A", &codes.join(","))]
    }

    /// Answers the target's challenge (CHAP_A, CHAP_I, CHAP_C), and puts ours if the target has to
    /// prove itself too.
    pub fn respond(&mut self, pairs: &[Pair]) -> Result<Vec<Pair>, ChapError> {
        if !matches!(self.state, State::Offered) {
            return Err(unexpected(pairs));
        }
        let [code, identifier, challenge] = values(pairs, ["CHAP_A", "CHAP_I", "CHAP_C"])?;
        let algorithm = parse_number(code)
            .and_then(Algorithm::from_code)
            .filter(|algorithm| self.config.algorithms.contains(algorithm))
            .ok_or_else(|| bad("CHAP_A", code))?;
        let identifier = parse_number(identifier)
            .and_then(|number| u8::try_from(number).ok())
            .ok_or_else(|| bad("CHAP_I", identifier))?;
        let challenge = parse_binary(challenge).ok_or_else(|| bad("CHAP_C", challenge))?;
        debug_assert!(challenge.len() <= BINARY_LEN_MAX, "parse_binary keeps to its cap");
        if challenge == self.nonce.challenge {
            return Err(ChapError::ReflectedChallenge);
        }
        let own = algorithm.response(identifier, &self.config.secret, &challenge);
        let mut answer =
            vec![Pair::new("CHAP_N", &self.config.user), Pair::new("CHAP_R", &hex(&own))];
        let mut expected = None;
        if let Some(target) = &self.config.target {
            let Nonce { identifier, challenge } = &self.nonce;
            expected =
                Some(Secret::new(&algorithm.response(*identifier, &target.secret, challenge)));
            answer.push(Pair::new("CHAP_I", &identifier.to_string()));
            answer.push(Pair::new("CHAP_C", &hex(challenge)));
        }
        self.state = State::Responded { own: Secret::new(&own), expected };
        Ok(answer)
    }

    /// Checks the target's answer: CHAP_N and CHAP_R if it has to prove itself, else nothing.
    pub fn finish(&mut self, pairs: &[Pair]) -> Result<(), ChapError> {
        let State::Responded { own, expected } = std::mem::replace(&mut self.state, State::Done)
        else {
            return Err(unexpected(pairs));
        };
        let (Some(expected), Some(target)) = (expected, &self.config.target) else {
            return if pairs.is_empty() { Ok(()) } else { Err(unexpected(pairs)) };
        };
        let [name, response] = values(pairs, ["CHAP_N", "CHAP_R"])?;
        if target.user.as_ref().is_some_and(|user| user != name) {
            return Err(ChapError::TargetName { name: name.to_owned() });
        }
        let response = parse_binary(response).ok_or_else(|| bad("CHAP_R", response))?;
        let response = Secret::new(&response);
        if response == own {
            return Err(ChapError::ReflectedResponse);
        }
        if response != expected {
            return Err(ChapError::TargetResponse);
        }
        Ok(())
    }
}

fn bad(key: &'static str, value: &str) -> ChapError {
    ChapError::Value { key, value: value.to_owned() }
}

fn unexpected(pairs: &[Pair]) -> ChapError {
    let key = pairs.first().map_or_else(String::new, |pair| pair.key.clone());
    ChapError::Unexpected { key }
}

/// The values of exactly these keys.
fn values<'a, const N: usize>(
    pairs: &'a [Pair],
    keys: [&'static str; N],
) -> Result<[&'a str; N], ChapError> {
    let mut found = [""; N];
    for (key, place) in keys.iter().zip(&mut found) {
        let pair = pairs.iter().find(|pair| pair.key == *key);
        *place = pair.ok_or(ChapError::Missing { key })?.value.as_str();
    }
    let stranger = pairs.iter().find(|pair| !keys.contains(&pair.key.as_str()));
    match stranger {
        Some(pair) => Err(ChapError::Unexpected { key: pair.key.clone() }),
        None if pairs.len() > N => Err(unexpected(pairs)),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(target: Option<&str>) -> ChapConfig {
        ChapConfig {
            user: "alice".to_owned(),
            secret: Secret::new(b"our secret 12"),
            algorithms: Algorithm::ALL.to_vec(),
            target: target.map(|secret| TargetCredentials {
                user: Some("disk".to_owned()),
                secret: Secret::new(secret.as_bytes()),
            }),
        }
    }

    fn nonce() -> Nonce {
        Nonce { identifier: 9, challenge: [7; CHALLENGE_LEN] }
    }

    fn challenge(algorithm: Algorithm, bytes: &[u8]) -> Vec<Pair> {
        let code = algorithm.code().to_string();
        let pairs = [("CHAP_A", code.as_str()), ("CHAP_I", "200"), ("CHAP_C", &hex(bytes))];
        pairs.map(|(key, value)| Pair::new(key, value)).to_vec()
    }

    fn answer(name: &str, response: &[u8]) -> Vec<Pair> {
        vec![Pair::new("CHAP_N", name), Pair::new("CHAP_R", &hex(response))]
    }

    /// An authentication that waits for the target's answer, and our response.
    fn responded(target: Option<&str>, algorithm: Algorithm) -> (Chap, Vec<Pair>) {
        let mut chap = Chap::new(config(target), nonce()).unwrap();
        assert_eq!(chap.offer(), [Pair::new("CHAP_A", "8,7,6,5")]);
        let ours = chap.respond(&challenge(algorithm, &[1, 2, 3])).unwrap();
        (chap, ours)
    }

    #[test]
    fn responses_are_hashes_of_identifier_secret_and_challenge() {
        let secret = Secret::new(b"secret");
        let lens = Algorithm::ALL.iter().map(|a| a.response(0, &secret, &[1, 2]).len());
        assert_eq!(lens.collect::<Vec<_>>(), [32, 32, 20, 16]);
        // "abc" split over the three parts: the vectors of the hashes' own standards.
        let b = Secret::new(b"b");
        let text = |a: Algorithm| hex(&a.response(b'a', &b, b"c"));
        assert_eq!(text(Algorithm::Md5), "0x900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(text(Algorithm::Sha1), "0xa9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            text(Algorithm::Sha256),
            "0xba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            text(Algorithm::Sha3),
            "0x3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"
        );
    }

    #[test]
    fn one_way_ends_with_our_response() {
        for algorithm in Algorithm::ALL {
            let (mut chap, ours) = responded(None, *algorithm);
            let expected = algorithm.response(200, &Secret::new(b"our secret 12"), &[1, 2, 3]);
            assert_eq!(ours, answer("alice", &expected));
            assert_eq!(chap.finish(&[]), Ok(()));
        }
        let (mut chap, _) = responded(None, Algorithm::Md5);
        let refused = Err(ChapError::Unexpected { key: "CHAP_N".to_owned() });
        assert_eq!(chap.finish(&answer("disk", &[1])), refused);
    }

    #[test]
    fn mutual_ends_with_the_proof_of_the_target() {
        for algorithm in Algorithm::ALL {
            let proof = algorithm.response(9, &Secret::new(b"their secret"), &[7; 32]);
            let (mut chap, ours) = responded(Some("their secret"), *algorithm);
            assert_eq!(ours[2..], [Pair::new("CHAP_I", "9"), Pair::new("CHAP_C", &hex(&[7; 32]))]);
            assert_eq!(chap.clone().finish(&answer("disk", &proof)), Ok(()));
            let name = "other".to_owned();
            assert_eq!(
                chap.clone().finish(&answer("other", &proof)),
                Err(ChapError::TargetName { name })
            );
            let wrong = Err(ChapError::TargetResponse);
            assert_eq!(chap.clone().finish(&answer("disk", &proof[1..])), wrong);
            assert_eq!(chap.clone().finish(&answer("disk", &[0; 32])), wrong);
            let missing = Err(ChapError::Missing { key: "CHAP_N" });
            assert_eq!(chap.clone().finish(&[]), missing);
            let own = parse_binary(&ours[1].value).unwrap();
            let reflected = Err(ChapError::ReflectedResponse);
            assert_eq!(chap.finish(&answer("disk", &own)), reflected);
        }
    }

    #[test]
    fn what_cannot_be_safe_is_refused() {
        let same = Chap::new(config(Some("our secret 12")), nonce());
        assert_eq!(same.unwrap_err(), ChapError::SameSecret);
        let mut chap = Chap::new(config(None), nonce()).unwrap();
        chap.offer();
        let reflected = chap.respond(&challenge(Algorithm::Md5, &[7; CHALLENGE_LEN]));
        assert_eq!(reflected, Err(ChapError::ReflectedChallenge));
        let no_algorithm = ChapConfig { algorithms: Vec::new(), ..config(None) };
        assert_eq!(Chap::new(no_algorithm, nonce()).unwrap_err(), ChapError::NoAlgorithm);
        let user = ChapConfig { user: "a\0b".to_owned(), ..config(None) };
        assert_eq!(Chap::new(user, nonce()).unwrap_err(), ChapError::User { len: 3 });
        let only_sha = ChapConfig { algorithms: vec![Algorithm::Sha256], ..config(None) };
        let mut chap = Chap::new(only_sha, nonce()).unwrap();
        chap.offer();
        let refused = Err(ChapError::Value { key: "CHAP_A", value: "5".to_owned() });
        assert_eq!(chap.respond(&challenge(Algorithm::Md5, &[1])), refused);
    }

    #[test]
    fn secrets_do_not_appear_in_debug() {
        let (chap, _) = responded(Some("their secret"), Algorithm::Sha1);
        let text = format!("{chap:?}");
        assert!(text.contains("Secret(..)") && text.contains("alice"));
        assert!(!text.contains("our secret") && !text.contains("their secret"));
        // Nor as numbers.
        assert!(!text.contains("111, 117, 114") && !text.contains("116, 104, 101"));
    }

    proptest! {
        #[test]
        fn any_answers_never_panic_and_never_pass(
            pairs in prop::collection::vec(("CHAP_[AICNR]", "[5-8]|0x[0-9a-f]{0,6}|\\PC{0,9}"), 0..5)
        ) {
            let pairs: Vec<Pair> = pairs.iter().map(|(k, v)| Pair::new(k, v)).collect();
            let mut chap = Chap::new(config(Some("their secret")), nonce()).unwrap();
            chap.offer();
            let _ = chap.respond(&pairs);
            prop_assert!(chap.finish(&pairs).is_err());
        }
    }
}

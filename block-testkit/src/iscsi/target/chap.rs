//! CHAP from the target's side (RFC 1994; RFC 7143, section 12.1.3).

use block_iscsi::chap::Algorithm;
use block_iscsi::keys::Pair;
use block_iscsi::keys::value::{hex, parse_binary, parse_number};
use block_iscsi::pdu::login::LoginStatus;

use super::config::Account;

/// Our challenge. Its bytes must be new for each login.
#[derive(Clone, Debug)]
pub(super) struct Challenge {
    pub(super) identifier: u8,
    pub(super) bytes: [u8; 24],
    pub(super) algorithm: Algorithm,
}

type Result<T> = std::result::Result<T, LoginStatus>;

const REFUSED: LoginStatus = LoginStatus::AuthenticationFailure;

/// The first algorithm of CHAP_A that some account takes.
pub(super) fn choose(offered: &str, accounts: &[Account]) -> Result<Algorithm> {
    let known = |algorithm: &Algorithm| accounts.iter().any(|a| a.algorithms.contains(algorithm));
    let mut codes =
        offered.split(',').map(|code| parse_number(code).and_then(Algorithm::from_code));
    codes.find_map(|algorithm| algorithm.filter(known)).ok_or(REFUSED)
}

impl Challenge {
    /// CHAP_A, CHAP_I and CHAP_C.
    pub(super) fn pairs(&self) -> Vec<Pair> {
        vec![
            Pair::new("CHAP_A", &self.algorithm.code().to_string()),
            Pair::new("CHAP_I", &self.identifier.to_string()),
            Pair::new("CHAP_C", &hex(&self.bytes)),
        ]
    }

    /// Checks CHAP_N and CHAP_R; the answer is CHAP_N and CHAP_R of the target, if it was challenged.
    pub(super) fn check(&self, pairs: &[Pair], accounts: &[Account]) -> Result<Vec<Pair>> {
        let value =
            |key: &str| pairs.iter().find(|pair| pair.key == key).map(|pair| pair.value.as_str());
        let user = value("CHAP_N").ok_or(LoginStatus::InitiatorError)?;
        let response = value("CHAP_R").ok_or(LoginStatus::InitiatorError)?;
        let response = parse_binary(response).ok_or(LoginStatus::InitiatorError)?;
        let account = accounts.iter().find(|account| account.user == user).ok_or(REFUSED)?;
        let expected = self.algorithm.response(self.identifier, &account.secret, &self.bytes);
        if !account.algorithms.contains(&self.algorithm) || response != expected {
            return Err(REFUSED);
        }
        match (value("CHAP_I"), value("CHAP_C")) {
            (None, None) => Ok(Vec::new()),
            (Some(identifier), Some(challenge)) => self.prove(account, identifier, challenge),
            _ => Err(LoginStatus::InitiatorError),
        }
    }

    fn prove(&self, account: &Account, identifier: &str, challenge: &str) -> Result<Vec<Pair>> {
        let identifier = parse_number(identifier).and_then(|number| u8::try_from(number).ok());
        let challenge = parse_binary(challenge);
        let (Some(identifier), Some(challenge)) = (identifier, challenge) else {
            return Err(LoginStatus::InitiatorError);
        };
        let (name, secret) = account.mutual.as_ref().ok_or(REFUSED)?;
        if challenge == self.bytes {
            return Err(REFUSED);
        }
        let response = self.algorithm.response(identifier, secret, &challenge);
        Ok(vec![Pair::new("CHAP_N", name), Pair::new("CHAP_R", &hex(&response))])
    }
}

//! Asking a portal which targets there are (SendTargets, RFC 7143, appendix C).

use std::sync::Arc;

use super::Initiator;
use crate::keys::Pair;
use crate::login::SessionTarget;
use crate::nexus::{Nexus, TaskError};
use crate::session::{SessionConfig, SessionError};
use crate::transport::{Connector, Portal};
use crate::url::{TARGET_LEN_MAX, parse_portal};

/// Most targets, and most addresses of all of them together, that an answer may have.
pub const TARGETS_MAX: usize = 16384;

/// A target that a portal tells of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiscoveredTarget {
    /// Its name.
    pub name: String,
    /// Where it is. None means: at the portal that was asked.
    pub addresses: Vec<TargetAddress>,
}

/// One of the places of a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetAddress {
    /// The portal.
    pub portal: Portal,
    /// The portal group that it belongs to: one session may use all portals of a group.
    pub group: u16,
}

/// Why a discovery failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// There was no session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The question was not answered.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A name is none.
    #[error("{name:?} is no name of a target")]
    Name {
        /// What came.
        name: String,
    },
    /// An address is none.
    #[error("{address:?} is no address of a target")]
    Address {
        /// What came.
        address: String,
    },
    /// An address comes before any name.
    #[error("the address {address:?} is nobody's")]
    NoName {
        /// What came.
        address: String,
    },
    /// There are too many.
    #[error("there are more than {limit} targets and addresses")]
    TooMany {
        /// How many there may be.
        limit: usize,
    },
}

/// Asks a portal which targets there are for this initiator. What `config` says of a target is not
/// used. Whoever polls this moves the bytes, too.
pub async fn discover(
    mut config: SessionConfig,
    connector: Arc<dyn Connector>,
) -> Result<Vec<DiscoveredTarget>, DiscoveryError> {
    config.target = SessionTarget::Discovery;
    let (initiator, pump) = Initiator::new(config, connector)?;
    let ask = async {
        initiator.opened().await?;
        let answer = initiator.text(&[Pair::new("SendTargets", "All")]).await;
        initiator.close().await;
        parse_targets(answer?)
    };
    let (targets, ()) = futures::join!(ask, pump);
    targets
}

/// Targets from the pairs of an answer: a name, and the addresses that belong to it.
fn parse_targets(pairs: Vec<Pair>) -> Result<Vec<DiscoveredTarget>, DiscoveryError> {
    let mut targets: Vec<DiscoveredTarget> = Vec::new();
    if pairs.len() > TARGETS_MAX {
        return Err(DiscoveryError::TooMany { limit: TARGETS_MAX });
    }
    for Pair { key, value } in pairs {
        match key.as_str() {
            "TargetName" => {
                let printable = value.chars().all(|c| !c.is_control() && !c.is_whitespace());
                if value.is_empty() || value.len() > TARGET_LEN_MAX || !printable {
                    return Err(DiscoveryError::Name { name: value });
                }
                targets.push(DiscoveredTarget { name: value, addresses: Vec::new() });
            }
            "TargetAddress" => match targets.last_mut() {
                Some(target) => target.addresses.push(parse_address(value)?),
                None => return Err(DiscoveryError::NoName { address: value }),
            },
            // Whatever else a target likes to tell.
            _ => {}
        }
    }
    Ok(targets)
}

/// `host[:port],group` (RFC 7143, section 13.8).
fn parse_address(address: String) -> Result<TargetAddress, DiscoveryError> {
    let (place, group) = address.split_once(',').unwrap_or((&address, "1"));
    match (parse_portal(place), group.parse()) {
        (Ok((host, port)), Ok(group)) => Ok(TargetAddress { portal: Portal { host, port }, group }),
        _ => Err(DiscoveryError::Address { address }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Host;

    fn parsed(pairs: &[(&str, &str)]) -> Result<Vec<DiscoveredTarget>, DiscoveryError> {
        parse_targets(pairs.iter().map(|(key, value)| Pair::new(key, value)).collect())
    }

    #[test]
    fn names_have_the_addresses_behind_them() {
        let targets = parsed(&[
            ("TargetName", "iqn.2026-01.org.example:a"),
            ("TargetAddress", "10.0.0.1:3261,2"),
            ("TargetAddress", "[fd00::1],3"),
            ("X-org.example.colour", "green"),
            ("TargetName", "iqn.2026-01.org.example:b"),
        ])
        .unwrap();
        let [a, b] = targets.as_slice() else { panic!("{targets:?}") };
        assert_eq!((a.name.as_str(), a.addresses.len()), ("iqn.2026-01.org.example:a", 2));
        let Portal { host, port } = &a.addresses[0].portal;
        assert_eq!((host, *port), (&Host::V4([10, 0, 0, 1].into()), 3261));
        assert_eq!((a.addresses[1].portal.port, a.addresses[1].group), (3260, 3));
        assert_eq!(b.addresses, []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_value() {
        let name = ("TargetName", "iqn.2026-01.org.example:a");
        for (pairs, error) in [
            (
                vec![("TargetAddress", "10.0.0.1,1")],
                DiscoveryError::NoName { address: "10.0.0.1,1".to_owned() },
            ),
            (vec![("TargetName", "")], DiscoveryError::Name { name: String::new() }),
            (vec![("TargetName", "a b")], DiscoveryError::Name { name: "a b".to_owned() }),
            (
                vec![name, ("TargetAddress", "10.0.0.1:0,1")],
                DiscoveryError::Address { address: "10.0.0.1:0,1".to_owned() },
            ),
            (
                vec![name, ("TargetAddress", "10.0.0.1,70000")],
                DiscoveryError::Address { address: "10.0.0.1,70000".to_owned() },
            ),
            (vec![name; TARGETS_MAX + 1], DiscoveryError::TooMany { limit: TARGETS_MAX }),
        ] {
            assert_eq!(parsed(&pairs), Err(error));
        }
    }
}

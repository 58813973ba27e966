//! Target URLs: `iscsi://[user[%password]@]host[:port]/target/lun`.
//!
//! `host` is a name, an IPv4 address, or an IPv6 address in brackets (with an optional `%zone`).
//! User and password stand as they are, so `%` ends the user, and neither can hold a `/`. The
//! target's name may be percent-encoded. Nothing may follow the LUN.
//!
//! A [`PortalUrl`] is the same without a LUN, and with or without a target: where to ask which there are.
//!
//! Invariant: `parse(url.to_string_with_password()) == url`. `Display` and `Debug` leave the
//! password out, and errors never repeat the part of the URL that may hold it.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The port of targets.
pub const DEFAULT_PORT: u16 = 3260;
/// Longest URL in bytes.
pub const URL_LEN_MAX: usize = 2048;
/// Longest name of a target in bytes (RFC 7143, section 4.2.7.1).
pub const TARGET_LEN_MAX: usize = 223;
/// Largest LUN that flat addressing can say.
pub const LUN_MAX: u16 = 0x3fff;

const SCHEME: &str = "iscsi://";
const TARGET_TYPES: [&str; 3] = ["iqn.", "eui.", "naa."];

/// Why a text is not the URL of a target.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UrlError {
    /// Longer than any URL needs to be.
    #[error("the URL has {len} bytes, more than {URL_LEN_MAX}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Another scheme.
    #[error("the URL does not start with {SCHEME}")]
    Scheme,
    /// Not `iscsi://host/target/lun`, or something follows the LUN.
    #[error("the URL is not of the form {SCHEME}[user[%password]@]host[:port]/target/lun")]
    Form,
    /// Not `iscsi://host` or `iscsi://host/target`.
    #[error("the URL is not of the form {SCHEME}[user[%password]@]host[:port][/target]")]
    PortalForm,
    /// A user, or a password, that is empty or holds white space or control characters.
    #[error("the user or the password before the @ cannot be used")]
    Credentials,
    /// A host that is no name and no address.
    #[error("\"{0}\" is no host")]
    Host(String),
    /// A port that is not 1 to 65535.
    #[error("\"{0}\" is no port")]
    Port(String),
    /// A target name that is too long, of no known type, or wrongly encoded.
    #[error("\"{0}\" is no name of a target")]
    Target(String),
    /// A LUN that is not 0 to 16383.
    #[error("\"{0}\" is no LUN")]
    Lun(String),
}

/// Where a portal is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Host {
    /// A name, to be looked up.
    Name(String),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address, and the zone it is valid in if it is link-local.
    V6(Ipv6Addr, Option<String>),
}

/// How to log in to a target.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    user: String,
    password: Option<String>,
}

/// A target's LUN and the way to it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct IscsiUrl {
    credentials: Option<Credentials>,
    host: Host,
    port: u16,
    target: String,
    lun: u16,
}

/// A portal, and how to log in there.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PortalUrl {
    authority: Authority,
    target: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Authority {
    credentials: Option<Credentials>,
    host: Host,
    port: u16,
}

impl IscsiUrl {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let rest = without_scheme(url)?;
        let (authority, path) = rest.split_once('/').ok_or(UrlError::Form)?;
        let (target, lun) = path.split_once('/').ok_or(UrlError::Form)?;
        if lun.contains(['/', '?', '#']) {
            return Err(UrlError::Form);
        }
        let Authority { credentials, host, port } = Authority::parse(authority, path)?;
        Ok(Self { credentials, host, port, target: parse_target(target)?, lun: parse_lun(lun)? })
    }

    /// The user and password, if any.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// Where the portal is.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The portal's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The target's name.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The LUN.
    pub fn lun(&self) -> u16 {
        self.lun
    }

    /// The URL with the password in it. For configuration, not for logs.
    pub fn to_string_with_password(&self) -> String {
        let credentials = match &self.credentials {
            Some(Credentials { user, password: Some(password) }) => format!("{user}%{password}@"),
            Some(Credentials { user, password: None }) => format!("{user}@"),
            None => String::new(),
        };
        format!("{SCHEME}{credentials}{}", self.without_credentials())
    }

    fn without_credentials(&self) -> String {
        let port = match self.port {
            DEFAULT_PORT => String::new(),
            port => format!(":{port}"),
        };
        let target: String = self.target.chars().map(encoded).collect();
        format!("{}{port}/{target}/{}", self.host, self.lun)
    }
}

/// The URL without the password.
impl fmt::Display for IscsiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SCHEME)?;
        if let Some(credentials) = &self.credentials {
            write!(f, "{}@", credentials.user)?;
        }
        f.write_str(&self.without_credentials())
    }
}

impl PortalUrl {
    /// Reads `iscsi://[user[%password]@]host[:port][/[target[/]]]`.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let rest = without_scheme(url)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = Authority::parse(authority, path).map_err(|error| match error {
            UrlError::Form => UrlError::PortalForm,
            error => error,
        })?;
        let target = path.strip_suffix('/').unwrap_or(path);
        if target.contains(['/', '?', '#']) {
            return Err(UrlError::PortalForm);
        }
        let target = match target {
            "" => None,
            target => Some(parse_target(target)?),
        };
        Ok(Self { authority, target })
    }

    /// The user and password, if any.
    pub fn credentials(&self) -> Option<&Credentials> {
        self.authority.credentials.as_ref()
    }

    /// Where the portal is.
    pub fn host(&self) -> &Host {
        &self.authority.host
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.authority.port
    }

    /// The only target of interest.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }
}

impl Authority {
    /// Reads what stands before `path`.
    fn parse(text: &str, path: &str) -> Result<Self, UrlError> {
        // With a / in it a password reaches into the path; no error may tell it then.
        if path.contains('@') || (!text.contains(['@', '[']) && text.contains('%')) {
            return Err(UrlError::Form);
        }
        // A password may hold an @; a host cannot.
        let (credentials, portal) = match text.rsplit_once('@') {
            Some((credentials, portal)) => (Some(Credentials::parse(credentials)?), portal),
            None => (None, text),
        };
        let (host, port) = parse_portal(portal)?;
        Ok(Self { credentials, host, port })
    }
}

impl Credentials {
    /// Reads `user` or `user%password`.
    fn parse(text: &str) -> Result<Self, UrlError> {
        let (user, password) = match text.split_once('%') {
            Some((user, password)) => (user, Some(password)),
            None => (text, None),
        };
        let usable = |text: &str| {
            !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace())
        };
        if !usable(user) || !password.is_none_or(usable) {
            return Err(UrlError::Credentials);
        }
        Ok(Self { user: user.to_owned(), password: password.map(str::to_owned) })
    }

    /// Name for CHAP.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Secret for CHAP.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let password = self.password.as_ref().map(|_| "(hidden)");
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .field("password", &password)
            .finish()
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::V4(address) => write!(f, "{address}"),
            Self::V6(address, None) => write!(f, "[{address}]"),
            Self::V6(address, Some(zone)) => write!(f, "[{address}%{zone}]"),
        }
    }
}

/// What follows the scheme.
fn without_scheme(url: &str) -> Result<&str, UrlError> {
    if url.len() > URL_LEN_MAX {
        return Err(UrlError::TooLong { len: url.len() });
    }
    match url.split_at_checked(SCHEME.len()) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case(SCHEME) => Ok(rest),
        _ => Err(UrlError::Scheme),
    }
}

pub(crate) fn parse_portal(text: &str) -> Result<(Host, u16), UrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let no_host = || UrlError::Host(text.to_owned());
            let (address, port) = rest.split_once(']').ok_or_else(no_host)?;
            let host = parse_v6(address).ok_or_else(no_host)?;
            match port.strip_prefix(':') {
                None if port.is_empty() => (host, None),
                None => return Err(no_host()),
                port => (host, port),
            }
        }
        None => {
            let (name, port) = match text.split_once(':') {
                Some((name, port)) => (name, Some(port)),
                None => (text, None),
            };
            (parse_name(name).ok_or_else(|| UrlError::Host(name.to_owned()))?, port)
        }
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => {
            digits(port).filter(|p| *p > 0).ok_or_else(|| UrlError::Port(port.to_owned()))?
        }
    };
    Ok((host, port))
}

fn parse_v6(text: &str) -> Option<Host> {
    let (address, zone) = match text.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (text, None),
    };
    let in_zone = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if zone.is_some_and(|zone| zone.is_empty() || !zone.chars().all(in_zone)) {
        return None;
    }
    Some(Host::V6(address.parse().ok()?, zone.map(str::to_owned)))
}

fn parse_name(text: &str) -> Option<Host> {
    if let Ok(address) = text.parse() {
        return Some(Host::V4(address));
    }
    let in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let fits = (1..=253).contains(&text.len());
    (fits && text.chars().all(in_name)).then(|| Host::Name(text.to_owned()))
}

fn parse_target(text: &str) -> Result<String, UrlError> {
    let bad = || UrlError::Target(text.to_owned());
    let name = decoded(text).ok_or_else(bad)?;
    let known = |kind: &&str| {
        name.get(..kind.len()).is_some_and(|start| start.eq_ignore_ascii_case(kind))
            && name.len() > kind.len()
    };
    let visible = !name.contains(|c: char| c.is_control() || c.is_whitespace());
    let usable = visible && name.len() <= TARGET_LEN_MAX && TARGET_TYPES.iter().any(known);
    usable.then_some(name).ok_or_else(bad)
}

fn parse_lun(text: &str) -> Result<u16, UrlError> {
    digits(text).filter(|lun| *lun <= LUN_MAX).ok_or_else(|| UrlError::Lun(text.to_owned()))
}

/// Decimal digits and nothing else.
fn digits(text: &str) -> Option<u16> {
    let only_digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| only_digits)
}

/// `text` with every `%` and two hexadecimal digits replaced by the byte they stand for.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// A character of a target's name as it stands in a URL.
fn encoded(c: char) -> String {
    if c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_' | '~') {
        return c.to_string();
    }
    let mut buffer = [0; 4];
    let bytes = c.encode_utf8(&mut buffer).bytes();
    bytes.map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TARGET: &str = "iqn.2004-01.org.example:disk";

    #[test]
    fn every_part_is_found() {
        let url = format!("iscsi://me%p@ss%word@10.0.0.1:860/{TARGET}/12");
        let parsed = IscsiUrl::parse(&url).unwrap();
        let credentials = parsed.credentials().unwrap();
        assert_eq!(credentials.user(), "me");
        assert_eq!(credentials.password(), Some("p@ss%word"));
        assert_eq!(parsed.host(), &Host::V4(Ipv4Addr::new(10, 0, 0, 1)));
        assert_eq!((parsed.port(), parsed.target(), parsed.lun()), (860, TARGET, 12));
        assert_eq!(parsed.to_string_with_password(), url);
        assert_eq!(parsed.to_string(), format!("iscsi://me@10.0.0.1:860/{TARGET}/12"));
        assert!(!format!("{parsed:?}").contains("p@ss"));
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        let host = |portal: &str| IscsiUrl::parse(&format!("iscsi://{portal}/{TARGET}/0"));
        let v6 = |text: &str, zone: Option<&str>| {
            Host::V6(text.parse().unwrap(), zone.map(str::to_owned))
        };
        assert_eq!(host("san-1.example").unwrap().host(), &Host::Name("san-1.example".into()));
        assert_eq!(host("[::1]").unwrap().host(), &v6("::1", None));
        assert_eq!(host("[fe80::1%eth0]:99").unwrap().host(), &v6("fe80::1", Some("eth0")));
        assert_eq!(host("[fe80::1%eth0]:99").unwrap().port(), 99);
        assert_eq!(host("me@[::1]").unwrap().credentials().unwrap().password(), None);
        let port = |text: &str| UrlError::Port(text.to_owned());
        for portal in ["", "[::1", "[::1]x", "[1.2.3.4]", "[::1%]", "a b", "h\u{e9}", "::1"] {
            assert!(matches!(host(portal), Err(UrlError::Host(_))), "{portal}");
        }
        for text in ["", "0", "65536", "+1", "1 "] {
            assert_eq!(host(&format!("h:{text}")), Err(port(text)));
        }
        for credentials in ["@", "%p@", "u%@", "u p@"] {
            assert_eq!(host(&format!("{credentials}h")), Err(UrlError::Credentials));
        }
    }

    #[test]
    fn targets_and_luns_are_checked() {
        let parse = |path: &str| IscsiUrl::parse(&format!("iscsi://h/{path}"));
        assert_eq!(parse("iqn.a%3Ab/0").unwrap().target(), "iqn.a:b");
        assert_eq!(parse("EUI.02004567A425678D/0").unwrap().target(), "EUI.02004567A425678D");
        let long = format!("iqn.{}", "a".repeat(220));
        for name in ["", "iqn.", "disk", "iqn.a%3", "iqn.a%zz", "iqn.%ff", "iqn.a%20b", &long] {
            assert_eq!(parse(&format!("{name}/0")), Err(UrlError::Target(name.to_owned())));
        }
        for lun in ["", "16384", "-1", "0x1", "99999"] {
            let path = format!("iqn.a/{lun}");
            assert_eq!(parse(&path), Err(UrlError::Lun(lun.to_owned())));
        }
        for url in ["iscsi://u%secret/1@h/iqn.a/0", "iscsi://u%secret/iqn.a/0"] {
            assert_eq!(IscsiUrl::parse(url), Err(UrlError::Form));
        }
        for path in ["iqn.a", "iqn.a/0/", "iqn.a/0?x=1", "iqn.a/0#"] {
            assert_eq!(parse(path), Err(UrlError::Form), "{path}");
        }
        assert_eq!(IscsiUrl::parse("http://h/iqn.a/0"), Err(UrlError::Scheme));
        assert_eq!(IscsiUrl::parse("iscsi://"), Err(UrlError::Form));
        let long = format!("iscsi://{}", "h".repeat(URL_LEN_MAX));
        assert_eq!(IscsiUrl::parse(&long), Err(UrlError::TooLong { len: long.len() }));
    }

    #[test]
    fn portals_have_a_target_or_none() {
        let parse = |rest: &str| PortalUrl::parse(&format!("iscsi://{rest}"));
        let url = parse("me%p@ss@[fd00::1]:860").unwrap();
        assert_eq!(url.credentials().unwrap().password(), Some("p@ss"));
        assert_eq!((url.host().to_string().as_str(), url.port()), ("[fd00::1]", 860));
        assert!(!format!("{url:?}").contains("p@ss"));
        for (rest, target) in [
            ("h", None),
            ("h/", None),
            ("h/iqn.a%3Ab", Some("iqn.a:b")),
            ("h/iqn.a/", Some("iqn.a")),
        ] {
            assert_eq!(parse(rest).unwrap().target(), target, "{rest}");
        }
        for rest in ["h/iqn.a/0", "u%secret/1@h", "u%secret", "h/iqn.a?x"] {
            assert_eq!(parse(rest), Err(UrlError::PortalForm), "{rest}");
        }
        assert_eq!(parse("h/disk"), Err(UrlError::Target("disk".to_owned())));
        assert_eq!(parse(""), Err(UrlError::Host(String::new())));
        assert_eq!(PortalUrl::parse("h"), Err(UrlError::Scheme));
    }

    fn urls() -> impl Strategy<Value = IscsiUrl> {
        let credentials = prop::option::of(
            ("[!-$&-.0-~]{1,8}", prop::option::of("[!-.0-~]{1,8}"))
                .prop_map(|(user, password)| Credentials { user, password }),
        );
        let host = prop_oneof![
            "[a-z][a-z0-9.-]{0,10}".prop_map(Host::Name),
            any::<Ipv4Addr>().prop_map(Host::V4),
            (any::<Ipv6Addr>(), prop::option::of("[a-z0-9]{1,4}"))
                .prop_map(|(address, zone)| Host::V6(address, zone)),
        ];
        let target = "(iqn|eui|naa)\\.[!-~\u{e0}-\u{ff}]{1,20}";
        (credentials, host, 1..=u16::MAX, target, 0..=LUN_MAX).prop_map(
            |(credentials, host, port, target, lun)| IscsiUrl {
                credentials,
                host,
                port,
                target,
                lun,
            },
        )
    }

    proptest! {
        #[test]
        fn urls_are_parsed_as_they_are_printed(url in urls()) {
            prop_assert_eq!(IscsiUrl::parse(&url.to_string_with_password()), Ok(url.clone()));
            let shown = IscsiUrl::parse(&url.to_string()).unwrap();
            prop_assert!(shown.credentials().is_none_or(|c| c.password().is_none()));
        }

        #[test]
        fn any_text_never_panics(text in ".{0,60}", tail in "[-a-z0-9%@:/\\[\\].\u{e9}]{0,60}") {
            IscsiUrl::parse(&text).ok();
            if let Ok(url) = IscsiUrl::parse(&format!("iscsi://{tail}")) {
                prop_assert_eq!(IscsiUrl::parse(&url.to_string_with_password()), Ok(url));
            }
        }
    }
}

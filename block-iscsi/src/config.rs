//! From a URL and options to what a session needs to know.
//!
//! | option | value | meaning |
//! |---|---|---|
//! | `filename` | `iscsi://...` | instead of the next five |
//! | `portal` | `host[:port]` | where the target is |
//! | `target` | `iqn...` | its name |
//! | `lun` | number | the unit; 0 |
//! | `user` | text | our name for CHAP |
//! | `password` | text | our secret for CHAP; better in a file |
//! | `password-file` | file name | holds our secret |
//! | `target-user` | text | the name that the target has to give |
//! | `target-password`, `target-password-file` | | its secret: it has to prove who it is, too |
//! | `initiator-name` | `iqn...` | who we are |
//! | `header-digest`, `data-digest` | `none`, `crc32c`, `none-crc32c`, `crc32c-none` | in the order of preference |
//! | `timeout` | seconds | longest time of a command; 0, for ever, is the default |
//! | `transport` | `tcp` | the only one |
//!
//! User and secrets that no option says are taken from the environment: `LIBISCSI_CHAP_USERNAME`,
//! `LIBISCSI_CHAP_PASSWORD`, `LIBISCSI_CHAP_TARGET_USERNAME`, `LIBISCSI_CHAP_TARGET_PASSWORD`.

use std::path::Path;
use std::time::Duration;

use block_core::error::{Error, OpenError, Problem};
use block_core::options::Options;

use crate::chap::{Algorithm, ChapConfig, Secret, TargetCredentials};
use crate::driver::NAME;
use crate::keys::{DigestKind, Offer};
use crate::login::{Authentication, SessionTarget};
use crate::scsi::luns::Lun;
use crate::session::{Patience, SessionConfig};
use crate::transport::Portal;
use crate::url::{Credentials, IscsiUrl, PortalUrl};

/// Who we are if nobody says otherwise.
pub const INITIATOR_NAME: &str = "iqn.2026-01.org.block-layer:initiator";

/// Longest secret in a file, in bytes.
pub const SECRET_LEN_MAX: u64 = 1024;

/// What CHAP is done with, the first one that the target knows. SHA-256 comes behind MD5 since
/// widespread targets take its number for their own SHA-1.
pub const ALGORITHMS: &[Algorithm] =
    &[Algorithm::Sha1, Algorithm::Md5, Algorithm::Sha256, Algorithm::Sha3];

/// Most commands on their way to a target at a time, if its window is no narrower.
const DEPTH: usize = 128;

/// A unit of a target, and how to get there.
#[derive(Clone, Debug)]
pub struct IscsiConfig {
    /// How to log in.
    pub session: SessionConfig,
    /// The unit.
    pub lun: Lun,
    /// What the user may be told: the URL without secrets.
    pub name: String,
}

impl IscsiConfig {
    /// Takes what is needed from `options`, which has nothing else. `env` looks up variables of the
    /// environment; `isid` is new and random.
    pub fn from_options(
        mut options: Options,
        env: &dyn Fn(&str) -> Option<String>,
        isid: [u8; 6],
    ) -> Result<Self, OpenError> {
        let url = url_of(&mut options)?;
        let lun = Lun::from_number(url.lun()).ok_or_else(|| bad("lun", &url.lun().to_string()))?;
        if let Some(transport) = options.take("transport")
            && transport != "tcp"
        {
            return Err(bad("transport", &transport));
        }
        let portal = Portal { host: url.host().clone(), port: url.port() };
        let target = SessionTarget::Normal(url.target().to_owned());
        let session = session(&mut options, env, portal, target, pair(url.credentials()), isid)?;
        options.finish()?;
        Ok(Self { session, lun, name: url.to_string() })
    }

    /// For a discovery session at a portal: the options but those that say where a unit is.
    pub fn discovery(
        url: &PortalUrl,
        mut options: Options,
        env: &dyn Fn(&str) -> Option<String>,
        isid: [u8; 6],
    ) -> Result<SessionConfig, OpenError> {
        let portal = Portal { host: url.host().clone(), port: url.port() };
        let credentials = pair(url.credentials());
        let target = SessionTarget::Discovery;
        let session = session(&mut options, env, portal, target, credentials, isid)?;
        options.finish()?;
        Ok(session)
    }
}

/// What is offered: data goes unasked where the target likes that, in long pieces.
pub fn offer() -> Offer {
    Offer {
        initial_r2t: false,
        max_recv_data_segment_len: 256 << 10,
        max_burst_len: (16 << 20) - 1024,
        first_burst_len: 256 << 10,
        time_to_wait_secs: 0,
        time_to_retain_secs: 0,
        max_outstanding_r2t: 16,
        ..Offer::default()
    }
}

fn session(
    options: &mut Options,
    env: &dyn Fn(&str) -> Option<String>,
    portal: Portal,
    target: SessionTarget,
    credentials: Option<(String, Option<String>)>,
    isid: [u8; 6],
) -> Result<SessionConfig, OpenError> {
    let mut offer = offer();
    if let Some(digests) = digests(options, "header-digest")? {
        offer.header_digest = digests;
    }
    if let Some(digests) = digests(options, "data-digest")? {
        offer.data_digest = digests;
    }
    let command = match options.take("timeout") {
        None => None,
        Some(text) => match text.parse::<u32>() {
            Ok(0) => None,
            Ok(secs) => Some(Duration::from_secs(secs.into())),
            Err(_) => return Err(bad("timeout", &text)),
        },
    };
    Ok(SessionConfig {
        portal,
        initiator: options.take("initiator-name").unwrap_or_else(|| INITIATOR_NAME.to_owned()),
        initiator_alias: None,
        target,
        authentication: authentication(options, env, credentials)?,
        offer,
        isid,
        depth: DEPTH,
        patience: Patience { command, ..Patience::default() },
    })
}

/// The URL, or what the options say instead of one.
fn url_of(options: &mut Options) -> Result<IscsiUrl, OpenError> {
    let url = match options.take("filename") {
        Some(url) => url,
        None => {
            let mut take = |option: &str| {
                let problem = Problem::Missing;
                let missing = OpenError::Option { option: option.to_owned(), problem };
                options.take(option).ok_or(missing)
            };
            let (portal, target) = (take("portal")?, take("target")?);
            let lun = options.take("lun").unwrap_or_else(|| "0".to_owned());
            format!("iscsi://{portal}/{target}/{lun}")
        }
    };
    IscsiUrl::parse(&url).map_err(|error| text("URL", error))
}

/// User and password of a URL.
fn pair(credentials: Option<&Credentials>) -> Option<(String, Option<String>)> {
    let credentials = credentials?;
    Some((credentials.user().to_owned(), credentials.password().map(str::to_owned)))
}

fn digests(
    options: &mut Options,
    name: &'static str,
) -> Result<Option<Vec<DigestKind>>, OpenError> {
    let Some(value) = options.take(name) else { return Ok(None) };
    let digest = |name: &str| match name {
        "none" => Some(DigestKind::None),
        "crc32c" => Some(DigestKind::Crc32c),
        _ => None,
    };
    let list: Option<Vec<_>> = value.to_ascii_lowercase().split('-').map(digest).collect();
    match list {
        Some(list) if list.len() == 1 || list.first() != list.last() => Ok(Some(list)),
        _ => Err(bad(name, &value)),
    }
}

fn authentication(
    options: &mut Options,
    env: &dyn Fn(&str) -> Option<String>,
    credentials: Option<(String, Option<String>)>,
) -> Result<Authentication, OpenError> {
    let (url_user, url_password) = credentials.unzip();
    let user = options.take("user").or(url_user).or_else(|| env("LIBISCSI_CHAP_USERNAME"));
    let secret = secret(options, "password", "password-file")?
        .or_else(|| url_password.flatten().map(String::into_bytes))
        .or_else(|| env("LIBISCSI_CHAP_PASSWORD").map(String::into_bytes));
    let target_user = options.take("target-user").or_else(|| env("LIBISCSI_CHAP_TARGET_USERNAME"));
    let target_secret = target_secret(options)?
        .or_else(|| env("LIBISCSI_CHAP_TARGET_PASSWORD").map(String::into_bytes));
    let missing =
        |option: &str| OpenError::Option { option: option.to_owned(), problem: Problem::Missing };
    let target = match (target_user, target_secret) {
        (user, Some(secret)) => Some(TargetCredentials { user, secret: Secret::new(&secret) }),
        (None, None) => None,
        (Some(_), None) => return Err(missing("target-password-file")),
    };
    match (user, secret) {
        (Some(user), Some(secret)) => {
            let (secret, algorithms) = (Secret::new(&secret), ALGORITHMS.to_vec());
            let has_to_prove = target.is_some();
            let chap = ChapConfig { user, secret, algorithms, target };
            Ok(match has_to_prove {
                true => Authentication::Chap(chap),
                false => Authentication::ChapOrNone(chap),
            })
        }
        (None, None) if target.is_none() => Ok(Authentication::None),
        (Some(_), None) => Err(missing("password-file")),
        (None, _) => Err(missing("user")),
    }
}

fn target_secret(options: &mut Options) -> Result<Option<Vec<u8>>, OpenError> {
    secret(options, "target-password", "target-password-file")
}

/// A secret that stands in an option, or in a file, without the end of the line.
fn secret(options: &mut Options, value: &str, file: &str) -> Result<Option<Vec<u8>>, OpenError> {
    match (options.take(value), options.take(file)) {
        (Some(_), Some(_)) => {
            let problem = Problem::Contradicts("a secret that is given otherwise");
            Err(OpenError::Option { option: file.to_owned(), problem })
        }
        (Some(secret), None) => Ok(Some(secret.into_bytes())),
        (None, Some(path)) => read_secret(Path::new(&path)).map(Some),
        (None, None) => Ok(None),
    }
}

fn read_secret(path: &Path) -> Result<Vec<u8>, OpenError> {
    use std::io::Read;
    let failed =
        |error: std::io::Error| OpenError::File { path: path.to_owned(), error: error.into() };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(SECRET_LEN_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > usize::try_from(SECRET_LEN_MAX).unwrap_or(usize::MAX) {
        let error = Error::Os(libc::EFBIG);
        return Err(OpenError::File { path: path.to_owned(), error });
    }
    while let Some(b'\n' | b'\r') = bytes.last() {
        bytes.pop();
    }
    Ok(bytes)
}

fn bad(option: &'static str, value: &str) -> OpenError {
    OpenError::OptionValue { option, value: value.to_owned(), problem: Problem::Unknown }
}

fn text(what: &'static str, error: impl ToString) -> OpenError {
    OpenError::Text { format: NAME, what, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::url::Host;

    const URL: &str = "iscsi://san.example:3261/iqn.2004-01.org.example:disk/3";

    fn config(options: &[(&str, &str)], env: &[(&str, &str)]) -> Result<IscsiConfig, OpenError> {
        let mut all = Options::new();
        options.iter().for_each(|(name, value)| all.set(*name, *value));
        let find = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        IscsiConfig::from_options(all, &find, [1; 6])
    }

    fn chap(options: &[(&str, &str)], env: &[(&str, &str)]) -> ChapConfig {
        match config(options, env).unwrap().session.authentication {
            Authentication::Chap(chap) | Authentication::ChapOrNone(chap) => chap,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_url_and_options_say_the_same() {
        let by_url = config(&[("filename", URL)], &[]).unwrap();
        let by_options = config(
            &[
                ("portal", "san.example:3261"),
                ("target", "iqn.2004-01.org.example:disk"),
                ("lun", "3"),
                ("transport", "tcp"),
            ],
            &[],
        )
        .unwrap();
        for config in [by_url, by_options] {
            let session = config.session;
            assert_eq!(session.portal.host, Host::Name("san.example".to_owned()));
            assert_eq!((session.portal.port, config.lun.number()), (3261, Some(3)));
            assert_eq!(session.initiator, INITIATOR_NAME);
            assert_eq!(session.authentication, Authentication::None);
            assert_eq!(session.patience.command, None);
            assert_eq!(config.name, URL);
        }
    }

    #[test]
    fn digests_and_times_are_what_the_user_says() {
        let all = [
            ("filename", URL),
            ("header-digest", "crc32c-none"),
            ("data-digest", "CRC32C"),
            ("timeout", "7"),
            ("initiator-name", "iqn.x:me"),
        ];
        let session = config(&all, &[]).unwrap().session;
        let both = vec![DigestKind::Crc32c, DigestKind::None];
        assert_eq!(session.offer.header_digest, both);
        assert_eq!(session.offer.data_digest, [DigestKind::Crc32c]);
        assert_eq!(session.patience.command, Some(Duration::from_secs(7)));
        assert_eq!(session.initiator, "iqn.x:me");
    }

    #[test]
    fn secrets_come_from_options_files_the_url_and_the_environment_in_this_order() {
        let directory = std::env::temp_dir();
        let path = directory.join(format!("block-iscsi-secret-{}", std::process::id()));
        std::fs::write(&path, "from the file\r\n").unwrap();
        let file = path.to_str().unwrap();
        let env = [("LIBISCSI_CHAP_USERNAME", "env"), ("LIBISCSI_CHAP_PASSWORD", "from outside")];
        let of = |secret: &str| Secret::new(secret.as_bytes());
        let with_url = "iscsi://joe%from-the-url@san.example/iqn.a:b/0";
        let found = chap(&[("filename", with_url), ("password-file", file)], &env);
        assert!(found.user == "joe" && found.secret == of("from the file"));
        let found = chap(&[("filename", with_url)], &env);
        assert!(found.user == "joe" && found.secret == of("from-the-url"));
        let found = chap(&[("filename", URL)], &env);
        assert!(found.user == "env" && found.secret == of("from outside"));
        let found = chap(&[("filename", URL), ("user", "me"), ("password", "s")], &env);
        assert!(found.user == "me" && found.secret == of("s") && found.target.is_none());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_target_that_has_to_prove_itself_cannot_do_without() {
        let all = [("filename", URL), ("user", "me"), ("password", "s"), ("target-password", "t")];
        match config(&all, &[]).unwrap().session.authentication {
            Authentication::Chap(chap) => assert!(chap.target.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases: [(&[(&str, &str)], &str); 11] = [
            (&[], "portal"),
            (&[("portal", "h")], "target"),
            (&[("filename", URL), ("user", "me")], "password-file"),
            (&[("filename", URL), ("password", "s")], "user"),
            (&[("filename", URL), ("target-user", "t")], "target-password-file"),
            (&[("filename", URL), ("timeout", "-1")], "timeout"),
            (&[("filename", URL), ("header-digest", "crc32c-crc32c")], "header-digest"),
            (&[("filename", URL), ("data-digest", "md5")], "data-digest"),
            (&[("filename", URL), ("transport", "iser")], "transport"),
            (&[("filename", URL), ("bogus", "1")], "bogus"),
            (&[("filename", URL), ("password", "s"), ("password-file", "f")], "password-file"),
        ];
        for (options, named) in cases {
            match config(options, &[]).unwrap_err() {
                OpenError::Option { option, .. } => assert_eq!(option, named),
                OpenError::OptionValue { option, .. } => assert_eq!(option, named),
                other => panic!("{other:?}"),
            }
        }
        let error = config(&[("filename", "iscsi://h/disk/0")], &[]).unwrap_err();
        assert!(matches!(error, OpenError::Text { what: "URL", .. }), "{error:?}");
        let missing = [("filename", URL), ("user", "u"), ("password-file", "/no/such")];
        assert!(matches!(config(&missing, &[]).unwrap_err(), OpenError::File { .. }));
    }
}

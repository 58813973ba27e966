//! `--object secret,id=...,data=...` (or `file=...`): passwords by name, so that options can say
//! `password-secret=...` and none stands among them.
//!
//! Invariants: a name stands for one secret; what a secret holds is shown by no message and no `Debug`;
//! it is at most [`SECRET_BYTES_MAX`] long.
//!
//! Not here: secrets that are encrypted by another one (`keyid`, `iv`), and secrets that are no text.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use block_core::Options;

use super::{SpecError, image_opts};

/// The objects of a command line.
#[derive(clap::Args)]
pub struct ObjectArgs {
    /// Secrets by name, for the option password-secret: secret,id=ID,data=TEXT or secret,id=ID,file=NAME
    #[arg(long = "object", value_name = "OBJECT", action = clap::ArgAction::Append, global = true)]
    objects: Vec<String>,
}

impl ObjectArgs {
    /// The secrets among them.
    pub fn secrets(&self) -> Result<Secrets, SpecError> {
        let mut secrets = Secrets::default();
        self.objects.iter().try_for_each(|object| secrets.add(object))?;
        Ok(secrets)
    }
}

/// Longest secret.
pub const SECRET_BYTES_MAX: u64 = 64 << 10;

/// The option that names a secret, and the one that it stands for.
const NAMED: &str = "password-secret";
const PLAIN: &str = "password";

/// Secrets by name.
#[derive(Clone, Default)]
pub struct Secrets {
    by_id: BTreeMap<String, String>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.by_id.keys()).finish()
    }
}

/// What is wrong with an object.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObjectError {
    /// Only secrets are known.
    #[error("there are no objects of the type '{0}', only 'secret'")]
    Type(String),
    /// No name, or one that is none.
    #[error("'id' must be a letter with letters, digits, '-', '.' and '_' after it")]
    Id,
    /// Two of one name.
    #[error("there are two objects of the name '{0}'")]
    Twice(String),
    /// Neither or both of the places of a secret.
    #[error("one of 'data' and 'file' must be given")]
    Source,
    /// An option that secrets do not have.
    #[error("a secret has no '{0}'")]
    Unknown(String),
    /// The file that holds a secret cannot be read.
    #[error("cannot read the secret in '{path}': {error}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        error: String,
    },
    /// Another format than plain text.
    #[error("the format '{0}' of a secret is not known, only 'raw'")]
    Format(String),
    /// A secret that nobody gave.
    #[error("there is no secret of the name '{0}'")]
    Missing(String),
}

impl Secrets {
    /// Adds the object that `text` describes: `secret,id=ID,data=TEXT` or `secret,id=ID,file=NAME`.
    pub fn add(&mut self, text: &str) -> Result<(), SpecError> {
        let mut options = image_opts::parse_with_implied(text, Some("qom-type"))?;
        let kind = options.take("qom-type").unwrap_or_default();
        if kind != "secret" {
            return Err(ObjectError::Type(kind).into());
        }
        let id = options.take("id").filter(|id| is_id(id)).ok_or(ObjectError::Id)?;
        if let Some(format) = options.take("format").filter(|format| format != "raw") {
            return Err(ObjectError::Format(format).into());
        }
        let secret = match (options.take("data"), options.take("file")) {
            (Some(data), None) => data,
            (None, Some(path)) => {
                read(&path).map_err(|error| ObjectError::File { path, error: error.to_string() })?
            }
            _ => return Err(ObjectError::Source.into()),
        };
        if let Some((name, _)) = options.iter().next() {
            return Err(ObjectError::Unknown(name.to_owned()).into());
        }
        match self.by_id.insert(id.clone(), secret) {
            None => Ok(()),
            Some(_) => Err(ObjectError::Twice(id).into()),
        }
    }

    /// Puts secrets in place of their names.
    pub(crate) fn reveal(&self, options: &mut Options) -> Result<(), ObjectError> {
        let is_named = |name: &str| name == NAMED || name.ends_with(&format!(".{NAMED}"));
        let names = options.iter().map(|(name, _)| name).filter(|name| is_named(name));
        let names: Vec<String> = names.map(str::to_owned).collect();
        for name in names {
            let id = options.take(&name).unwrap_or_default();
            let secret = self.by_id.get(&id).ok_or(ObjectError::Missing(id))?;
            let parent = name.strip_suffix(NAMED).unwrap_or_default();
            options.set(format!("{parent}{PLAIN}"), secret);
        }
        Ok(())
    }
}

fn is_id(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

/// The text of a file, which is all of the secret, ends of lines too.
fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text)?;
    match u64::try_from(read) {
        Ok(read) if read <= SECRET_BYTES_MAX => Ok(text),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secrets(objects: &[&str]) -> Result<Secrets, SpecError> {
        let mut secrets = Secrets::default();
        objects.iter().try_for_each(|object| secrets.add(object))?;
        Ok(secrets)
    }

    #[test]
    fn a_name_is_replaced_by_what_it_stands_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "from a file").unwrap();
        let second = format!("secret,id=b,file={}", file.path().display());
        let secrets = secrets(&["secret,id=a-1,data=x,,y", &second]).unwrap();
        let mut options = Options::new()
            .with("password-secret", "a-1")
            .with("file.password-secret", "b")
            .with("file.user", "u");
        secrets.reveal(&mut options).unwrap();
        let all: Vec<_> = options.iter().collect();
        let expected = [("file.password", "from a file"), ("file.user", "u"), ("password", "x,y")];
        assert_eq!(all, expected);
        assert_eq!(format!("{secrets:?}"), r#"{"a-1", "b"}"#);
        let mut missing = Options::new().with("password-secret", "c");
        assert_eq!(secrets.reveal(&mut missing), Err(ObjectError::Missing("c".to_owned())));
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        let cases: &[(&[&str], ObjectError)] = &[
            (&["iothread,id=a"], ObjectError::Type("iothread".to_owned())),
            (&["secret,data=x"], ObjectError::Id),
            (&["secret,id=1,data=x"], ObjectError::Id),
            (&["secret,id=a"], ObjectError::Source),
            (&["secret,id=a,data=x,file=y"], ObjectError::Source),
            (&["secret,id=a,data=x,keyid=b"], ObjectError::Unknown("keyid".to_owned())),
            (&["secret,id=a,data=x,format=base64"], ObjectError::Format("base64".to_owned())),
            (&["secret,id=a,data=x", "secret,id=a,data=y"], ObjectError::Twice("a".to_owned())),
        ];
        for (objects, expected) in cases {
            let refused = secrets(objects).unwrap_err();
            assert_eq!(refused, SpecError::Object(expected.clone()), "{objects:?}");
        }
        let missing = secrets(&["secret,id=a,file=/nonexistent/secret"]).unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/secret"), "{missing}");
        let endless = secrets(&["secret,id=a,file=/dev/zero"]).unwrap_err();
        assert!(endless.to_string().contains("too large"), "{endless}");
    }

    proptest! {
        #[test]
        fn any_text_is_a_secret_or_refused(text in "(secret,)?[a-z=,.-]{0,40}") {
            // What stands in files of this machine is nobody's business here.
            if !text.contains("file") {
                let _ = Secrets::default().add(&text);
            }
        }
    }
}

//! The descriptor: lines of `KEY = VALUE`, and one line for each extent.
//!
//! A key is a whole word, in upper or lower case; a value may stand in quotes. Comments begin with `#`.
//! Lines end with a line feed, perhaps after a carriage return. The text ends at the first NUL.

use super::error::BadImage;

/// What a guest may do with an extent.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read and write.
    ReadWrite,
    /// Read.
    ReadOnly,
    /// Neither.
    None,
}

/// A line that names an extent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExtentLine {
    /// What a guest may do with it.
    pub access: Access,
    /// Its length in sectors.
    pub sectors: u64,
    /// Its type, in upper case.
    pub kind: String,
    /// Its file; `None` for types that have none.
    pub name: Option<String>,
    /// Where in the file it starts, in sectors.
    pub offset: u64,
}

/// A descriptor.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Text {
    settings: Vec<(String, String)>,
    extents: Vec<ExtentLine>,
    /// Whether something other than NUL follows the first NUL.
    pub(super) dirty_tail: bool,
}

impl Text {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadImage> {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let (text, tail) = bytes.split_at(end);
        let mut found = Self { dirty_tail: tail.iter().any(|b| *b != 0), ..Self::default() };
        let text = String::from_utf8_lossy(text);
        for (number, line) in (1..).zip(text.split('\n')) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = || BadImage::Line { number, text: line.to_owned() };
            if let Some(access) = access(line) {
                found.extents.push(extent(access, line).ok_or_else(bad)?);
            } else {
                let (key, value) = line.split_once('=').ok_or_else(bad)?;
                let value = value.trim().trim_matches('"');
                found.settings.push((key.trim().to_lowercase(), value.to_owned()));
            }
        }
        Ok(found)
    }

    /// The extents, in their order.
    pub fn extents(&self) -> &[ExtentLine] {
        &self.extents
    }

    /// The first value of `key`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.values(key).next()
    }

    /// All values of `key`.
    pub fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        let key = key.to_lowercase();
        self.settings.iter().filter(move |(own, _)| *own == key).map(|(_, value)| value.as_str())
    }

    /// The content id.
    pub fn cid(&self) -> Option<u32> {
        hex(self.value("CID")?)
    }

    /// The content id that the parent must have; `ffffffff` where there is none.
    pub fn parent_cid(&self) -> Option<u32> {
        hex(self.value("parentCID")?)
    }

    /// What is wrong with the lines that identify the image.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for key in ["CID", "parentCID", "createType", "version"] {
            let count = self.values(key).count();
            if count != 1 {
                problems.push(format!("the descriptor has {count} lines {key}"));
            }
        }
        for key in ["CID", "parentCID"] {
            for value in self.values(key).filter(|value| hex(value).is_none()) {
                problems.push(format!("{key} is {value:?}"));
            }
        }
        if self.dirty_tail {
            problems.push("something follows the end of the descriptor".to_owned());
        }
        problems
    }
}

/// One to eight hexadecimal digits.
fn hex(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|b| b.is_ascii_hexdigit());
    u32::from_str_radix(text, 16).ok().filter(|_| digits && text.len() <= 8)
}

fn access(line: &str) -> Option<Access> {
    match line.split_whitespace().next()? {
        "RW" => Some(Access::ReadWrite),
        "RDONLY" => Some(Access::ReadOnly),
        "NOACCESS" => Some(Access::None),
        _ => None,
    }
}

/// `ACCESS SECTORS TYPE ["NAME" [OFFSET]]`.
fn extent(access: Access, line: &str) -> Option<ExtentLine> {
    let (words, rest) = match line.split_once('"') {
        Some((words, rest)) => (words, Some(rest)),
        None => (line, None),
    };
    let mut words = words.split_whitespace().skip(1);
    let sectors = words.next()?.parse().ok()?;
    let kind = words.next()?.to_uppercase();
    if words.next().is_some() {
        return None;
    }
    let mut found = ExtentLine { access, sectors, kind, name: None, offset: 0 };
    if let Some(rest) = rest {
        let (name, offset) = rest.rsplit_once('"')?;
        found.name = Some(name.to_owned());
        if let Some(offset) = offset.split_whitespace().next() {
            found.offset = offset.parse().ok()?;
        }
    }
    (found.name.is_some() || found.kind == "ZERO").then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() -> Result<(), BadImage> {
        let text = Text::parse(
            b"# Disk DescriptorFile\r\nversion=1\r\nCID=0012abCD\r\n\r\nparentCID=ffffffff\r\n\
              createType = \"custom\"\nRW 10 SPARSE \"a b.vmdk\"\nRDONLY 4 FLAT \"f\" 12\n\
              NOACCESS 3 ZERO\n\0\0",
        )?;
        assert_eq!((text.cid(), text.parent_cid()), (Some(0x12_abcd), Some(u32::MAX)));
        assert_eq!(text.value("createtype"), Some("custom"));
        let names: Vec<_> = text.extents().iter().map(|line| line.name.as_deref()).collect();
        assert_eq!(names, [Some("a b.vmdk"), Some("f"), None]);
        assert_eq!(text.extents()[1].offset, 12);
        assert_eq!(text.problems(), [] as [String; 0]);
        Ok(())
    }

    #[test]
    fn lines_that_say_nothing_are_named() {
        for line in ["RW x SPARSE \"a\"", "RW 1 FLAT", "RW 1 FLAT \"a\" x", "nothing", "RW 1"] {
            let text = format!("version=1\n{line}\n");
            let expected = BadImage::Line { number: 2, text: line.to_owned() };
            assert_eq!(Text::parse(text.as_bytes()), Err(expected));
        }
    }

    #[test]
    fn ids_are_lines_of_their_own() -> Result<(), BadImage> {
        let text = Text::parse(b"parentCID=5\nversion=1\ncreateType=\"x\"\nCID=123456789\n")?;
        assert_eq!((text.cid(), text.parent_cid()), (None, Some(5)));
        assert_eq!(text.problems(), ["CID is \"123456789\""]);
        Ok(())
    }
}

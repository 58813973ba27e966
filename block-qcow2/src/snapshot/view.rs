//! Reading a snapshot: which one, and its L1 table, checked before it is used.

use block_core::error::Problem;
use block_core::{Error, Node, OpenError, Options, Result};

use crate::geometry::{DataLocation, Geometry};
use crate::spec::entry::l1_entry;
use crate::spec::header::{MAX_L1_BYTES, check_place};
use crate::spec::snapshot::Snapshot;
use crate::spec::{FORMAT, Fault, bad_field};
use crate::table::read_words;

/// How a snapshot is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Selector {
    /// By its id or, if none has that id, by its name.
    Any(String),
    /// By id, name or both.
    Exactly { id: Option<String>, name: Option<String> },
}

impl Selector {
    /// Takes `snapshot`, `snapshot.id` and `snapshot.name`.
    pub(crate) fn take(options: &mut Options) -> Result<Option<Self>, OpenError> {
        let any = options.take("snapshot");
        let (id, name) = (options.take("snapshot.id"), options.take("snapshot.name"));
        match (any, id, name) {
            (None, None, None) => Ok(None),
            (Some(any), None, None) => Ok(Some(Self::Any(any))),
            (None, id, name) => Ok(Some(Self::Exactly { id, name })),
            (Some(_), ..) => Err(bad_option(Problem::Contradicts("snapshot.id and snapshot.name"))),
        }
    }
}

fn bad_option(problem: Problem) -> OpenError {
    let option = "snapshot".to_owned();
    OpenError::Option { option, problem }
}

/// The snapshot of `list` that is meant.
pub(crate) fn find<'a>(list: &'a [Snapshot], selector: &Selector) -> Option<&'a Snapshot> {
    match selector {
        Selector::Any(which) => {
            let by_id = list.iter().find(|snapshot| snapshot.id == *which);
            by_id.or_else(|| list.iter().find(|snapshot| snapshot.name == *which))
        }
        Selector::Exactly { id, name } => list.iter().find(|snapshot| {
            id.as_ref().is_none_or(|id| snapshot.id == *id)
                && name.as_ref().is_none_or(|name| snapshot.name == *name)
        }),
    }
}

/// Length and L1 table of the disk that the snapshot holds; `active_len` is the length of today's disk.
pub(crate) async fn read_view(
    file: &Node,
    geometry: Geometry,
    list: &[Snapshot],
    selector: &Selector,
    active_len: u64,
) -> Result<(u64, Vec<u64>), OpenError> {
    if geometry.data_location() == DataLocation::DataFile {
        let (driver, what) = (FORMAT, "reading a snapshot of an image with a data file");
        return Err(OpenError::Unsupported { driver, what });
    }
    let found = find(list, selector).ok_or_else(|| bad_option(Problem::Missing))?;
    let len = found.disk_len.unwrap_or(active_len);
    let open_error = |error| match error {
        Error::Corrupt { what, value } => bad_field(what, value, Problem::Unknown),
        error => OpenError::Request { what: "snapshot L1 table", error },
    };
    check_l1(file, geometry, found, len).map_err(|fault| open_error(fault.into()))?;
    let needed = u32::try_from(geometry.l1_entries_for(len)).unwrap_or(u32::MAX);
    Ok((len, l1_of(file, geometry, found, needed).await.map_err(open_error)?))
}

/// Whether the L1 table of a snapshot may be one, and maps a disk of `len` bytes.
pub(crate) fn check_l1(
    file: &Node,
    geometry: Geometry,
    snapshot: &Snapshot,
    len: u64,
) -> Result<(), Fault> {
    check_l1_place(file, geometry, snapshot)?;
    let count = u64::from(snapshot.l1.count);
    if len > block_core::range::MAX_LEN {
        return Err(Fault::new("disk size of a snapshot", len));
    }
    if count < geometry.l1_entries_for(len) {
        return Err(Fault::new("L1 size of a snapshot", count));
    }
    Ok(())
}

fn check_l1_place(file: &Node, geometry: Geometry, snapshot: &Snapshot) -> Result<(), Fault> {
    let (offset, count) = (snapshot.l1.offset, u64::from(snapshot.l1.count));
    if count > MAX_L1_BYTES / 8 {
        return Err(Fault::new("L1 size of a snapshot", count));
    }
    let misplaced = Fault::new("L1 table offset of a snapshot", offset.bytes());
    check_place("L1 table offset of a snapshot", geometry, offset, count * 8)
        .map_err(|_| misplaced)?;
    if count > 0 && offset.bytes().saturating_add(count * 8) > file.len() {
        return Err(misplaced);
    }
    Ok(())
}

/// The first `count` entries of a snapshot's L1 table, all of them checked.
pub(crate) async fn l1_of(
    file: &Node,
    geometry: Geometry,
    snapshot: &Snapshot,
    count: u32,
) -> Result<Vec<u64>> {
    check_l1_place(file, geometry, snapshot)?;
    let words = read_words(file, "snapshot L1 table", snapshot.l1.offset, count.into()).await;
    let words = words.map_err(|error| match error {
        OpenError::Request { error, .. } => error,
        _ => Error::IO,
    })?;
    for raw in &words {
        l1_entry(geometry, *raw)?;
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(id: &str, name: &str) -> Snapshot {
        let mut bytes = [0; 40];
        bytes[13] = u8::try_from(id.len()).unwrap();
        bytes[15] = u8::try_from(name.len()).unwrap();
        crate::spec::snapshot::parse(&[&bytes, id.as_bytes(), name.as_bytes()].concat()).unwrap()
    }

    #[test]
    fn ids_come_before_names() {
        let list = [snapshot("1", "2"), snapshot("2", "b"), snapshot("3", "b")];
        let any = |text: &str| find(&list, &Selector::Any(text.to_owned())).map(|s| s.id.as_str());
        assert_eq!((any("2"), any("b"), any("4")), (Some("2"), Some("2"), None));
        let exactly = |id: Option<&str>, name: Option<&str>| {
            let [id, name] = [id, name].map(|text| text.map(str::to_owned));
            find(&list, &Selector::Exactly { id, name }).map(|found| found.id.as_str())
        };
        assert_eq!(exactly(None, Some("2")), Some("1"));
        assert_eq!(exactly(Some("3"), Some("b")), Some("3"));
        assert_eq!(exactly(Some("1"), Some("b")), None);
    }

    #[test]
    fn options_name_one_snapshot() {
        let mut none = Options::new();
        assert_eq!(Selector::take(&mut none), Ok(None));
        let mut any = Options::new().with("snapshot", "a");
        assert_eq!(Selector::take(&mut any), Ok(Some(Selector::Any("a".to_owned()))));
        let mut both = Options::new().with("snapshot", "a").with("snapshot.id", "1");
        assert!(Selector::take(&mut both).is_err());
    }
}

//! `info`: what an image says of itself, and of the files below it.
//!
//! Invariant: only metadata is read: no data file and no backing file is opened, unless the chain was
//! asked for, and then each by its plain name, never by a name that could mean more than a file. No name is
//! shown with a password in it.

use std::collections::BTreeSet;
use std::io::Write;

use block_core::driver::{Child, ChildRole};
use block_core::info::{DriverInfo, InfoValue, SnapshotInfo};
use block_core::range::Alignment;
use block_core::registry::{MAX_CHAIN, OpenContext};
use block_core::{Node, OpenFlags, Options, graph};
use serde_json::{Map, Value};

use crate::open::{ImageSpec, block_on, open, registry};
use crate::spec::{json, shown, shown_value};

use super::common::{OutputFormat, cannot_open, one_image};
use super::json::Json;
use super::{Failure, Output, human};

/// Display information about an image.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Show every image of the chain of backing files.
    #[arg(short, long)]
    backing_chain: bool,
    /// Open the images without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Layout of the output.
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// Shows the information.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let name = one_image("info", &args.files)?;
    let reports = block_on(collect(args, name))?;
    match (args.output, args.backing_chain) {
        (OutputFormat::Human, _) => {
            for (index, report) in reports.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                report.print_human(out)?;
            }
        }
        (OutputFormat::Json, true) => {
            let list = Json::List(reports.iter().map(Report::to_json).collect());
            writeln!(out, "{}", list.to_pretty())?;
        }
        (OutputFormat::Json, false) => {
            for report in &reports {
                writeln!(out, "{}", report.to_json().to_pretty())?;
            }
        }
    }
    Ok(0)
}

/// What is said of one image.
struct Report {
    filename: String,
    format: &'static str,
    len: u64,
    info: DriverInfo,
    actual_size: Option<u64>,
    snapshots: Vec<SnapshotInfo>,
    /// Where the backing file is, if that can be said.
    full_backing: Option<String>,
    children: Vec<(String, Self)>,
}

/// Reports on the image, and on those below it if asked to.
async fn collect(args: &Args, name: &str) -> Result<Vec<Report>, Failure> {
    let flags = OpenFlags { no_io: true, no_backing: true, ..OpenFlags::READ_ONLY };
    let mut spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        flags,
        ..ImageSpec::new(name)
    };
    let mut reports = Vec::new();
    let mut seen = BTreeSet::new();
    loop {
        let name = plain_name(&spec);
        let shown = name.as_ref().unwrap_or(&spec.name);
        let node = open(&spec).await.map_err(|error| cannot_open(shown, &error))?;
        let name = name.or_else(|| name_with_options(&spec, &node));
        let report = Report::of(&node, name);
        let closed = graph::close(&node).await;
        closed.map_err(Failure::new)?;
        let next = report.full_backing.clone();
        let format = report.info.backing_format.clone();
        if reports.len() > MAX_CHAIN {
            return Err(Failure::new(format_args!(
                "The chain of backing files is longer than {MAX_CHAIN} images"
            )));
        }
        if !seen.insert(report.filename.clone()) {
            return Err(Failure::new(format_args!(
                "Backing file '{}' creates an infinite loop.",
                report.filename
            )));
        }
        let has_backing = report.info.backing_filename.is_some();
        reports.push(report);
        match next {
            Some(path) if args.backing_chain => {
                // The path is an option of its own: in the place of a name it could be taken for
                // `json:` or a protocol, which a name inside an image must not mean.
                spec = ImageSpec {
                    name: String::new(),
                    options: Options::filename(path),
                    format,
                    image_opts: false,
                    ..spec
                };
            }
            None if args.backing_chain && has_backing => {
                let name = reports.last().and_then(|r| r.info.backing_filename.clone());
                let name = name.unwrap_or_default();
                let text =
                    format_args!("'{name}' inside the image is refused: not a plain file name");
                return Err(Failure::new(text));
            }
            _ => return Ok(reports),
        }
    }
}

/// The name of an image that the command line names by nothing but a file name.
fn plain_name(spec: &ImageSpec) -> Option<String> {
    if spec.image_opts || spec.name.starts_with("json:") {
        return None;
    }
    match spec.name.as_str() {
        "" => spec.options.peek("filename").map(str::to_owned),
        name => Some(name.to_owned()),
    }
}

/// A name that opens the same disk again, where options say which part of a file that is.
fn name_with_options(spec: &ImageSpec, node: &Node) -> Option<String> {
    /// How an image is opened, which says nothing of what is in it.
    const MANNERS: &[&str] = &[
        "aio",
        "auto-read-only",
        "cache.direct",
        "cache.no-flush",
        "detect-zeroes",
        "discard",
        "force-share",
        "locking",
        "read-only",
    ];
    let mut options = spec.node_options().ok()?;
    if options.peek("driver").is_none() {
        options.set("driver", node.driver().name());
    }
    let is_part = |name: &str| {
        let (parent, last) =
            name.rsplit_once('.').map_or(("", name), |(parent, last)| (parent, last));
        let driver = if parent.is_empty() { "driver" } else { &format!("{parent}.driver") };
        matches!(last, "offset" | "size") && options.peek(driver) == Some("raw")
    };
    if !options.iter().any(|(name, _)| is_part(name)) {
        return None;
    }
    let is_manner = |name: &str| {
        let ends = |manner: &str| {
            name.strip_suffix(manner).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        MANNERS.iter().any(|manner| ends(manner))
    };
    let mut tree = Value::Object(Map::new());
    for (name, value) in options.iter().filter(|(name, _)| !is_manner(name)) {
        let place = name.split('.').try_fold(&mut tree, |tree, part| {
            Some(tree.as_object_mut()?.entry(part).or_insert_with(|| Value::Object(Map::new())))
        })?;
        *place = Value::from(value);
    }
    Some(format!("{}{tree}", json::PREFIX))
}

impl Report {
    fn of(node: &Node, name: Option<String>) -> Self {
        let mut info = node.driver().info();
        let mut full_backing = info.backing_filename.as_deref().and_then(|b| resolve(node, b));
        info.backing_filename = info.backing_filename.as_deref().map(shown);
        for (_, value) in &mut info.specific {
            shown_value(value);
        }
        let storage = info.filename.clone().or_else(|| storage_name(node));
        let snapshots = node.driver().as_snapshots().map(|s| s.list()).unwrap_or_default();
        let filename = as_path(&shown(&name.or(storage).unwrap_or_default()));
        if let (Some(path), true) = (&mut full_backing, filename.starts_with("./")) {
            *path = in_this_directory(path);
        }
        Self {
            filename,
            format: node.driver().name(),
            len: Alignment::SECTOR.round_up(node.len()),
            actual_size: actual_size(node),
            snapshots,
            full_backing,
            children: named_children(node)
                .map(|(name, node)| (name, Self::of(&node, None)))
                .collect(),
            info,
        }
    }

    fn is_protocol(&self) -> bool {
        self.children.is_empty()
    }
}

/// A name without the `file:` before a path. One that would be taken for a protocol without it is
/// written as a path in this directory.
fn as_path(name: &str) -> String {
    match name.strip_prefix("file:") {
        Some(path) if path.split('/').next().is_some_and(|first| first.contains(':')) => {
            in_this_directory(path)
        }
        Some(path) => path.to_owned(),
        None => name.to_owned(),
    }
}

/// A relative path, written so that nobody takes it for anything else.
fn in_this_directory(path: &str) -> String {
    if path.starts_with(['/', '.']) { path.to_owned() } else { format!("./{path}") }
}

/// The children that are no backing files, the last one first; extents have numbers.
fn named_children(node: &Node) -> impl Iterator<Item = (String, Node)> {
    let children = node.children().into_iter().filter(|child| child.role != ChildRole::Cow);
    let mut extents = 0;
    let named = children.map(|Child { name, node, .. }| {
        if name != "extents" {
            return (name.to_owned(), node);
        }
        let numbered = format!("{name}.{extents}");
        extents += 1;
        (numbered, node)
    });
    named.collect::<Vec<_>>().into_iter().rev()
}

/// The file name of what holds the image.
pub(super) fn storage_name(node: &Node) -> Option<String> {
    let child = node.children().into_iter().find(|child| child.role != ChildRole::Cow)?;
    child.node.driver().info().filename.or_else(|| storage_name(&child.node))
}

/// Bytes that everything below holds, without backing files.
fn actual_size(node: &Node) -> Option<u64> {
    if let Some(own) = node.driver().info().actual_size {
        return Some(own);
    }
    let children = node.children();
    let mut below = children.iter().filter(|child| child.role != ChildRole::Cow).peekable();
    below.peek()?;
    below.try_fold(0u64, |sum, child| Some(sum.saturating_add(actual_size(&child.node)?)))
}

/// Where the backing file `name` of `node` is.
fn resolve(node: &Node, name: &str) -> Option<String> {
    OpenContext::new(registry(), OpenFlags::READ_ONLY).resolve(node, name).ok()
}

impl Report {
    fn to_json(&self) -> Json {
        let children = self.children.iter().map(|(name, child)| {
            Json::Map(vec![("name", Json::from(name.as_str())), ("info", child.to_json())])
        });
        let mut map = vec![("children", Json::List(children.collect()))];
        let mut add = |name, value: Option<Json>| map.extend(value.map(|value| (name, value)));
        let text = |text: &Option<String>| text.as_deref().map(Json::from);
        let info = &self.info;
        let snapshots = self.snapshots.iter().map(snapshot_json).collect();
        add("backing-filename-format", text(&info.backing_format));
        add("snapshots", (!self.snapshots.is_empty()).then_some(Json::List(snapshots)));
        add("virtual-size", Some(Json::Int(self.len)));
        add("filename", Some(Json::from(self.filename.as_str())));
        add("cluster-size", info.cluster_size.map(Json::Int));
        add("format", Some(Json::from(self.format)));
        add("actual-size", self.actual_size.map(Json::Int));
        add("format-specific", self.specific_json());
        add("full-backing-filename", text(&self.full_backing));
        add("backing-filename", text(&info.backing_filename));
        add("encrypted", info.encrypted.then_some(Json::Bool(true)));
        add("compressed", info.compressed.then_some(Json::Bool(true)));
        add("dirty-flag", Some(Json::Bool(info.dirty)));
        Json::Map(map)
    }

    /// What only this driver has. The file driver is listed although it has nothing to say.
    fn specific_json(&self) -> Option<Json> {
        if self.info.specific.is_empty() && self.format != "file" {
            return None;
        }
        let data = self.info.specific.iter().map(|(name, value)| (*name, Json::from(value)));
        let data = Json::Map(data.collect());
        Some(Json::Map(vec![("type", Json::from(self.format)), ("data", data)]))
    }

    fn print_human(&self, out: &mut Output) -> Result<(), Failure> {
        let info = &self.info;
        writeln!(out, "image: {}", self.filename)?;
        writeln!(out, "file format: {}", self.format)?;
        writeln!(out, "virtual size: {} ({} bytes)", human::size(self.len), self.len)?;
        writeln!(out, "disk size: {}", self.disk_size())?;
        if info.encrypted {
            writeln!(out, "encrypted: yes")?;
        }
        if let Some(size) = info.cluster_size {
            writeln!(out, "cluster_size: {size}")?;
        }
        if info.dirty {
            writeln!(out, "cleanly shut down: no")?;
        }
        if let Some(backing) = &info.backing_filename {
            write!(out, "backing file: {backing}")?;
            match &self.full_backing {
                None => write!(out, " (cannot determine actual path)")?,
                Some(full) if full != backing => write!(out, " (actual path: {full})")?,
                Some(_) => {}
            }
            writeln!(out)?;
        }
        if let Some(format) = &info.backing_format {
            writeln!(out, "backing file format: {format}")?;
        }
        print_snapshots(&self.snapshots, out)?;
        if !info.specific.is_empty() {
            writeln!(out, "Format specific information:")?;
            print_named(&info.specific, 1, out)?;
        }
        for (name, child) in &self.children {
            child.print_child(&format!("/{name}"), out)?;
        }
        Ok(())
    }

    fn disk_size(&self) -> String {
        self.actual_size.map_or_else(|| "unavailable".to_owned(), human::size)
    }

    fn print_child(&self, path: &str, out: &mut Output) -> Result<(), Failure> {
        writeln!(out, "Child node '{path}':")?;
        writeln!(out, "    filename: {}", self.filename)?;
        if self.is_protocol() {
            writeln!(out, "    protocol type: {}", self.format)?;
            writeln!(out, "    file length: {} ({} bytes)", human::size(self.len), self.len)?;
        } else {
            writeln!(out, "    file format: {}", self.format)?;
            writeln!(out, "    virtual size: {} ({} bytes)", human::size(self.len), self.len)?;
        }
        writeln!(out, "    disk size: {}", self.disk_size())?;
        if !self.info.specific.is_empty() {
            writeln!(out, "    Format specific information:")?;
            print_named(&self.info.specific, 2, out)?;
        }
        for (name, child) in &self.children {
            child.print_child(&format!("{path}/{name}"), out)?;
        }
        Ok(())
    }
}

/// The table of snapshots; nothing if there are none.
pub(super) fn print_snapshots(snapshots: &[SnapshotInfo], out: &mut Output) -> Result<(), Failure> {
    if snapshots.is_empty() {
        return Ok(());
    }
    writeln!(out, "Snapshot list:")?;
    let columns = ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"];
    print_snapshot_row(&columns, out)?;
    for snapshot in snapshots {
        let size = human::size(snapshot.vm_state_size);
        let date = human::date(snapshot.date_seconds);
        let clock = human::clock(snapshot.vm_clock_nanoseconds);
        let count = snapshot.instruction_count.map_or("--".to_owned(), |c| c.to_string());
        print_snapshot_row(&[&snapshot.id, &snapshot.name, &size, &date, &clock, &count], out)?;
    }
    Ok(())
}

fn print_snapshot_row(columns: &[&str; 6], out: &mut Output) -> Result<(), Failure> {
    let [id, tag, size, date, clock, count] = columns;
    writeln!(out, "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {count:>10}")?;
    Ok(())
}

fn snapshot_json(snapshot: &SnapshotInfo) -> Json {
    const SECOND: u64 = 1_000_000_000;
    let mut map = Vec::new();
    map.extend(snapshot.instruction_count.map(|count| ("icount", Json::Int(count))));
    map.extend([
        ("vm-clock-nsec", Json::Int(snapshot.vm_clock_nanoseconds % SECOND)),
        ("name", Json::from(snapshot.name.as_str())),
        ("date-sec", Json::Int(snapshot.date_seconds)),
        ("date-nsec", Json::Int(u64::from(snapshot.date_nanoseconds))),
        ("vm-clock-sec", Json::Int(snapshot.vm_clock_nanoseconds / SECOND)),
        ("id", Json::from(snapshot.id.as_str())),
        ("vm-state-size", Json::Int(snapshot.vm_state_size)),
    ]);
    Json::Map(map)
}

/// Named values, one on a line, those of a group below its name.
fn print_named(
    values: &[(&'static str, InfoValue)],
    level: usize,
    out: &mut Output,
) -> Result<(), Failure> {
    for (name, value) in values {
        print_value(&name.replace('-', " "), value, level, out)?;
    }
    Ok(())
}

fn print_value(
    name: &str,
    value: &InfoValue,
    level: usize,
    out: &mut Output,
) -> Result<(), Failure> {
    write!(out, "{:width$}{name}:", "", width = level * 4)?;
    match value {
        InfoValue::Bool(value) => writeln!(out, " {value}")?,
        InfoValue::Int(value) => writeln!(out, " {value}")?,
        InfoValue::Text(value) => writeln!(out, " {value}")?,
        InfoValue::List(values) => {
            writeln!(out)?;
            for (index, value) in (0u64..).zip(values) {
                print_value(&format!("[{index}]"), value, level + 1, out)?;
            }
        }
        InfoValue::Map(values) => {
            writeln!(out)?;
            print_named(values, level + 1, out)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let info = DriverInfo {
            cluster_size: Some(65536),
            backing_filename: Some("b".to_owned()),
            backing_format: Some("raw".to_owned()),
            specific: vec![
                ("compression-type", InfoValue::Text("zlib".to_owned())),
                (
                    "bitmaps",
                    InfoValue::List(vec![InfoValue::Map(vec![(
                        "flags",
                        InfoValue::List(vec![InfoValue::Text("auto".to_owned())]),
                    )])]),
                ),
            ],
            ..DriverInfo::default()
        };
        let snapshot = SnapshotInfo {
            id: "1".to_owned(),
            name: "snap1".to_owned(),
            vm_clock_nanoseconds: 1_500_000_000,
            ..SnapshotInfo::default()
        };
        Report {
            filename: "dir/a".to_owned(),
            format: "qcow2",
            len: 10 << 20,
            info,
            actual_size: None,
            snapshots: vec![snapshot],
            full_backing: Some("dir/b".to_owned()),
            children: Vec::new(),
        }
    }

    #[test]
    fn the_layout_for_people() {
        let mut out = Output::buffer();
        report().print_human(&mut out).unwrap();
        let date = human::date(0);
        let expect = format!(
            "image: dir/a\nfile format: qcow2\nvirtual size: 10 MiB (10485760 bytes)\n\
             disk size: unavailable\ncluster_size: 65536\nbacking file: b (actual path: dir/b)\n\
             backing file format: raw\nSnapshot list:\n\
             ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT\n\
             1       snap1                 0 B {date}  0000:00:01.500         --\n\
             Format specific information:\n    compression type: zlib\n    bitmaps:\n        \
             [0]:\n            flags:\n                [0]: auto\n"
        );
        assert_eq!(out.text(), expect);
    }

    #[test]
    fn the_fields_for_programs() {
        let text = report().to_json().to_pretty();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["full-backing-filename"], "dir/b");
        assert_eq!(value["snapshots"][0]["vm-clock-nsec"], 500_000_000);
        assert_eq!(value["format-specific"]["data"]["bitmaps"][0]["flags"][0], "auto");
        assert_eq!(value["dirty-flag"], false);
        assert_eq!(value.get("actual-size"), None);
        assert!(value["children"].as_array().unwrap().is_empty());
    }
}

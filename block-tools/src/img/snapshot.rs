//! `snapshot`: lists, takes, applies and deletes the snapshots inside an image.

use std::time::{SystemTime, UNIX_EPOCH};

use block_core::ability::{NewSnapshot, Snapshots};
use block_core::{Error, Node, OpenFlags, graph};
use clap::ArgAction;

use crate::open::{ImageSpec, block_on};

use super::common::{one_image, open_image};
use super::info::print_snapshots;
use super::{Failure, Output};

/// List or change the snapshots inside an image.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Print nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    /// Open the image without locks.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// List the snapshots (the default).
    #[arg(short, long, action = ArgAction::Count)]
    list: u8,
    /// Make the disk what it was when a snapshot was taken.
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Vec<String>,
    /// Take a snapshot.
    #[arg(short, long, value_name = "SNAPSHOT")]
    create: Vec<String>,
    /// Delete a snapshot.
    #[arg(short, long, value_name = "SNAPSHOT")]
    delete: Vec<String>,
    /// The image.
    #[arg(value_name = "FILENAME")]
    files: Vec<String>,
}

/// What is to be done.
#[derive(Copy, Clone)]
enum Action<'a> {
    List,
    Apply(&'a str),
    Create(&'a str),
    Delete(&'a str),
}

impl Action<'_> {
    /// What a failure starts with.
    fn failed(self, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(match self {
            Self::List => format!("Could not list snapshots: {error}"),
            Self::Apply(name) => format!("Could not apply snapshot '{name}': {error}"),
            Self::Create(name) => format!("Could not create snapshot '{name}': {error}"),
            Self::Delete(name) => format!("Could not delete snapshot '{name}': {error}"),
        })
    }
}

/// Does what is asked for.
pub(super) fn run(args: &Args, out: &mut Output) -> Result<u8, Failure> {
    let action = action(args)?;
    let name = one_image("snapshot", &args.files)?;
    let flags = match action {
        Action::List => OpenFlags::READ_ONLY,
        // Clusters move between snapshots and the disk; what is below does not matter.
        _ => OpenFlags::READ_WRITE,
    };
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        force_share: args.force_share,
        flags: OpenFlags { no_backing: true, ..flags },
        ..ImageSpec::new(name)
    };
    block_on(async {
        let node = open_image(&spec, 1).await?;
        let result = act(action, &node, out).await;
        let closed = graph::close(&node).await;
        result?;
        closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
        Ok(0)
    })
}

fn action(args: &Args) -> Result<Action<'_>, Failure> {
    let lists = (0..args.list).map(|_| Action::List);
    let applied = args.apply.iter().map(|name| Action::Apply(name));
    let created = args.create.iter().map(|name| Action::Create(name));
    let deleted = args.delete.iter().map(|name| Action::Delete(name));
    let mut given = lists.chain(applied).chain(created).chain(deleted);
    match (given.next(), given.next()) {
        (None, _) => Ok(Action::List),
        (Some(action), None) => Ok(action),
        _ => Err(Failure::usage("snapshot", "Cannot mix '-l', '-a', '-c', '-d'")),
    }
}

async fn act(action: Action<'_>, node: &Node, out: &mut Output) -> Result<(), Failure> {
    let snapshots = node.driver().as_snapshots();
    let done = match (action, snapshots) {
        (Action::List, None) => return Ok(()),
        (Action::List, Some(snapshots)) => return print_snapshots(&snapshots.list(), out),
        (_, None) => Err(Error::Unsupported),
        (Action::Apply(name), Some(snapshots)) => snapshots.apply(name).await,
        (Action::Create(name), Some(snapshots)) => snapshots.create(&new_snapshot(name)).await,
        (Action::Delete(name), Some(snapshots)) => {
            let id = id_of(snapshots, name).ok_or_else(|| action.failed(&"snapshot not found"))?;
            snapshots.delete(&id).await
        }
    };
    done.map_err(|error| match (action, error) {
        (Action::Apply(_), Error::Busy) => action.failed(
            &"the image has persistent bitmaps, which would not know what changes; remove them first",
        ),
        (_, error) => action.failed(&error.errno_text()),
    })?;
    let flushed = node.flush().await;
    flushed.map_err(|error| Failure::new(format_args!("error while flushing: {error}")))
}

/// The id of the snapshot to delete: by its name alone, because a number that somebody took for a name
/// must not delete the snapshot with that id.
fn id_of(snapshots: &dyn Snapshots, name: &str) -> Option<String> {
    snapshots.list().into_iter().find(|snapshot| snapshot.name == name).map(|found| found.id)
}

/// A snapshot that is taken now.
fn new_snapshot(name: &str) -> NewSnapshot {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    NewSnapshot {
        name: name.to_owned(),
        date_seconds: u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        date_nanoseconds: now.subsec_nanos(),
    }
}

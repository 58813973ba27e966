//! `bitmap`: adds, removes and changes the persistent dirty bitmaps of an image.
//!
//! The actions run in the order of the command line. The first that fails ends the command; what those
//! before it have done stays.

use block_core::dirty::{BitmapError, BitmapId, DirtyBitmap, Granularity};
use block_core::options::parse_size;
use block_core::{Node, OpenFlags, graph};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};

use crate::open::{ImageSpec, block_on};

use super::common::open_image;
use super::{Failure, Output};

/// Change the persistent bitmaps of an image.
#[derive(clap::Args)]
#[command(args_override_self = true)]
pub(super) struct Args {
    /// Format of the image (default: probed).
    #[arg(short, long, value_name = "FMT", conflicts_with = "image_opts")]
    format: Option<String>,
    /// The name is options (driver=...,file.filename=...).
    #[arg(long)]
    image_opts: bool,
    #[command(flatten)]
    actions: Actions,
    /// Bytes in a granule of the bitmap that --add makes: a power of two of at least 512.
    #[arg(short, long, value_name = "SIZE")]
    granularity: Option<String>,
    /// Image of the bitmaps that --merge names.
    #[arg(short = 'b', long, value_name = "SRC_FILENAME")]
    source_file: Option<String>,
    /// Format of that image.
    #[arg(short = 'F', long, value_name = "SRC_FMT")]
    source_format: Option<String>,
    /// The image and the name of its bitmap.
    #[arg(value_name = "FILENAME BITMAP")]
    files: Vec<String>,
}

/// The actions in the order in which they were given.
#[derive(Clone, Debug, Default)]
struct Actions(Vec<Action>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Action {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

/// Options without a value, what they do, and their help.
const PLAIN: [(&str, Action, &str); 5] = [
    ("add", Action::Add, "Make the bitmap, which records from now on"),
    ("remove", Action::Remove, "Remove the bitmap"),
    ("clear", Action::Clear, "Make everything clean"),
    ("enable", Action::Enable, "Record from now on"),
    ("disable", Action::Disable, "Record no more"),
];

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge(_) => "merge",
        }
    }
}

/// By hand, because the order among different options counts.
impl clap::Args for Actions {
    fn augment_args(command: Command) -> Command {
        let plain = |(name, _, help): (&'static str, Action, &'static str)| {
            let arg = Arg::new(name).long(name).num_args(0).action(ArgAction::Append);
            arg.default_missing_value("on").help(help)
        };
        let merge = Arg::new("merge").long("merge").num_args(1).action(ArgAction::Append);
        let merge = merge.value_name("SOURCE").help("Add what another bitmap has dirty");
        command.args(PLAIN.map(plain)).arg(merge)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Actions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found = Vec::new();
        for (name, action, _) in PLAIN {
            let indices = matches.indices_of(name).into_iter().flatten();
            found.extend(indices.map(|index| (index, action.clone())));
        }
        let indices = matches.indices_of("merge").into_iter().flatten();
        let sources = matches.get_many::<String>("merge").into_iter().flatten();
        found.extend(indices.zip(sources.cloned().map(Action::Merge)));
        found.sort_by_key(|(index, _)| *index);
        Ok(Self(found.into_iter().map(|(_, action)| action).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Runs the actions.
pub(super) fn run(args: &Args, _: &mut Output) -> Result<u8, Failure> {
    let granularity = check(args)?;
    let [file, name] = args.files.as_slice() else {
        return Err(Failure::new("Expecting filename and bitmap name"));
    };
    let spec = ImageSpec {
        format: args.format.clone(),
        image_opts: args.image_opts,
        flags: OpenFlags { no_backing: true, ..OpenFlags::READ_WRITE },
        ..ImageSpec::new(file)
    };
    block_on(async {
        let node = open_image(&spec, 1).await?;
        let mut nodes = vec![node];
        let result = run_actions(args, granularity, name, &mut nodes).await;
        let mut closed = Ok(());
        for node in nodes {
            closed = closed.and(graph::close(&node).await);
        }
        result?;
        closed.map_err(|error| Failure::new(format_args!("error while closing: {error}")))?;
        Ok(0)
    })
}

/// Checks what needs no image; gives the granularity.
fn check(args: &Args) -> Result<Option<u64>, Failure> {
    let actions = &args.actions.0;
    if actions.is_empty() {
        return Err(Failure::new(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    if args.granularity.is_some() && !actions.contains(&Action::Add) {
        return Err(Failure::new("granularity only supported with --add"));
    }
    let merges = actions.iter().any(|action| matches!(action, Action::Merge(_)));
    if args.source_file.is_some() && !merges {
        return Err(Failure::new("Merge bitmap source file only supported with --merge"));
    }
    if args.source_format.is_some() && args.source_file.is_none() {
        return Err(Failure::new("-F only supported with -b"));
    }
    let Some(text) = &args.granularity else {
        return Ok(None);
    };
    let invalid = || Failure::new(format_args!("Invalid granularity specified: '{text}'."));
    parse_size(text).map(Some).ok_or_else(invalid)
}

/// Runs the actions on the bitmap `name` of the first of `nodes`; the source of a merge is opened into
/// `nodes`, behind it.
async fn run_actions(
    args: &Args,
    granularity: Option<u64>,
    name: &str,
    nodes: &mut Vec<Node>,
) -> Result<(), Failure> {
    let Some(node) = nodes.first().cloned() else {
        return Ok(());
    };
    let source = match &args.source_file {
        None => node.clone(),
        Some(file) => {
            let spec = ImageSpec {
                format: args.source_format.clone(),
                flags: OpenFlags { no_backing: true, ..OpenFlags::READ_ONLY },
                ..ImageSpec::new(file)
            };
            let source = open_image(&spec, 1).await?;
            nodes.push(source.clone());
            source
        }
    };
    for action in &args.actions.0 {
        let done = match action {
            Action::Add => add(&node, name, granularity),
            Action::Remove => remove(&node, name),
            Action::Clear => change(&node, name, DirtyBitmap::clear),
            Action::Enable => change(&node, name, DirtyBitmap::enable),
            Action::Disable => change(&node, name, DirtyBitmap::disable),
            Action::Merge(from) => merge(&node, name, &source, from),
        };
        done.map_err(|what| {
            let action = action.name();
            Failure::new(format_args!("Operation {action} on bitmap {name} failed: {what}"))
        })?;
    }
    Ok(())
}

/// Makes a persistent bitmap.
fn add(node: &Node, name: &str, granularity: Option<u64>) -> Result<(), String> {
    const DEFAULT_MIN: u64 = 4 << 10;
    const DEFAULT_MAX: u64 = 64 << 10;
    let cluster = node.driver().info().cluster_size.unwrap_or(DEFAULT_MAX);
    let bytes = granularity.unwrap_or(cluster.clamp(DEFAULT_MIN, DEFAULT_MAX));
    let format = node.driver().name();
    let storage = node.driver().as_bitmaps();
    let storage =
        storage.ok_or_else(|| format!("'{format}' images cannot store persistent bitmaps"))?;
    let granularity = Granularity::new(bytes).map_err(|error| error.to_string())?;
    if node.dirty_bitmaps().find(name).is_some() {
        return Err(format!("Bitmap already exists: {name}"));
    }
    let stored = storage.can_store(name, bytes);
    stored.map_err(|error| format!("Can't make bitmap '{name}' persistent: {error}"))?;
    let bitmaps = node.dirty_bitmaps();
    let id = bitmaps.create(Some(name), granularity).map_err(|error| error.to_string())?;
    let made = bitmaps.update(id, DirtyBitmap::make_persistent);
    flatten(made)
}

fn remove(node: &Node, name: &str) -> Result<(), String> {
    let id = find(node, name)?;
    node.dirty_bitmaps().remove(id).map(drop).map_err(|error| error.to_string())
}

fn change(
    node: &Node,
    name: &str,
    change: impl FnOnce(&mut DirtyBitmap) -> Result<(), BitmapError>,
) -> Result<(), String> {
    flatten(node.dirty_bitmaps().update(find(node, name)?, change))
}

/// Adds the bitmap `from` of `source` to the bitmap `name` of `node`.
fn merge(node: &Node, name: &str, source: &Node, from: &str) -> Result<(), String> {
    let id = find(node, name)?;
    // A copy: the two may be of one node, whose lock is held while either is looked at.
    let copy = source.dirty_bitmaps().with(find(source, from)?, Clone::clone);
    let copy = copy.map_err(|error| error.to_string())?;
    flatten(node.dirty_bitmaps().update(id, |bitmap| bitmap.merge(&copy)))
}

fn find(node: &Node, name: &str) -> Result<BitmapId, String> {
    let found = node.dirty_bitmaps().find(name);
    found.ok_or_else(|| format!("Dirty bitmap '{name}' not found"))
}

fn flatten(result: Result<Result<(), BitmapError>, BitmapError>) -> Result<(), String> {
    result.and_then(|inner| inner).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    #[test]
    fn actions_keep_the_order_of_the_command_line() {
        let parse = |words: &str| {
            let command = Actions::augment_args(Command::new("bitmap").no_binary_name(true));
            let matches = command.get_matches_from(words.split(' '));
            Actions::from_arg_matches(&matches).unwrap().0
        };
        assert_eq!(
            parse("--merge a --clear --merge b --add --add --disable"),
            [
                Action::Merge("a".to_owned()),
                Action::Clear,
                Action::Merge("b".to_owned()),
                Action::Add,
                Action::Add,
                Action::Disable,
            ]
        );
    }
}

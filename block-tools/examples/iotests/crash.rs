//! Crashes: what the disk may hold is followed while words change it, and images that a crash may leave are
//! opened, read, written to and checked.
//!
//! The image as it was found when it was first opened is taken as stable. Words of block-img are not
//! followed: after one of them, what the image holds is taken as stable, since they end only when it is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;

use block_core::options::parse_size;
use block_core::range::{to_u64, to_usize};
use block_core::{Alignment, ByteRange, IoBuf, Node, OpenFlags, graph};
use block_testkit::disk::crash::{CrashDisk, CrashImage};
use block_testkit::model::disk::{Outcome, Source};
use block_testkit::model::durable::{Change, DurableModel, Effect, Flush, Stable};
use block_testkit::naive::qcow2::Image as Qcow2Image;
use block_testkit::op::OpId;
use block_tools::img::{self, Output};
use block_tools::open::{ImageSpec, open};
use block_tools::surroundings::{self, Surroundings};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::files::Files;
use crate::words::{Did, Words};
use crate::world::{World, registry_over};

/// Longest disk whose contents are followed.
const FOLLOWED_LEN_MAX: u64 = 64 << 20;

/// Of a block so long, a crash leaves one version.
const BLOCK: u64 = 512;

/// What the disk holds and may hold after a crash.
#[derive(Default)]
pub(crate) struct Known {
    /// Whether the scenario crashes at all.
    pub(crate) wanted: bool,
    model: Option<DurableModel>,
    /// Counts the requests.
    ops: OpId,
    /// Requests that run while later words do.
    pending: Vec<(Change, Stable)>,
}

/// A word that has begun.
pub(crate) enum Begun {
    /// It changes nothing that is followed.
    Nothing,
    Change(Change, Stable),
    /// It runs on.
    Pending(Change, Stable),
    Flush(Flush),
    /// It waits for what runs.
    Wait,
}

impl Known {
    /// Learns what the disk holds, unless that is known.
    pub(crate) async fn look(&mut self, world: &World, spec: &ImageSpec) -> Result<(), String> {
        if !self.wanted || self.model.is_some() {
            return Ok(());
        }
        let spec = ImageSpec {
            name: world.names.image.clone(),
            options: block_core::Options::new(),
            flags: OpenFlags::READ_ONLY,
            ..spec.clone()
        };
        let bytes = contents(&spec).await?;
        let source = Source::Bytes(0, bytes.as_slice().into());
        self.model = Some(DurableModel::new(to_u64(bytes.len()), source, BLOCK));
        Ok(())
    }

    /// Forgets: the image was changed by others, and is stable.
    pub(crate) fn forget(&mut self) {
        self.model = None;
        self.pending.clear();
    }

    /// A word of block-io begins.
    pub(crate) fn begin(&mut self, line: &str) -> Begun {
        let Some(model) = &mut self.model else { return Begun::Nothing };
        self.ops += 1;
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((&word, rest)) = words.split_first() else { return Begun::Nothing };
        match word {
            "flush" | "f" => Begun::Flush(model.begin_flush()),
            "aio_flush" => Begun::Wait,
            "truncate" | "t" => match rest.last().and_then(|text| parse_size(text)) {
                Some(len) => Begun::Change(model.begin_truncate(self.ops, len), Stable::Later),
                None => Begun::Nothing,
            },
            "write" | "w" | "writev" | "aio_write" | "discard" | "d" => {
                let Some(request) = Request::parse(rest) else { return Begun::Nothing };
                let effect = match word {
                    "discard" | "d" => Effect::MayReplace,
                    _ => Effect::Replaces,
                };
                let zeroes = request.is_zero || effect == Effect::MayReplace;
                let source = if zeroes { Source::Zero } else { request.source() };
                let change = model.begin(self.ops, request.range, source, effect);
                match word {
                    "aio_write" => Begun::Pending(change, request.stable),
                    _ => Begun::Change(change, request.stable),
                }
            }
            _ => Begun::Nothing,
        }
    }

    /// It has ended.
    pub(crate) fn end(&mut self, begun: Begun, well: bool) {
        let Some(model) = &mut self.model else { return };
        let outcome = if well { Outcome::Done } else { Outcome::Failed };
        match begun {
            Begun::Nothing => {}
            Begun::Change(change, stable) => model.end(change, outcome, stable),
            Begun::Pending(change, stable) => self.pending.push((change, stable)),
            Begun::Flush(flush) if well => model.end_flush(flush),
            Begun::Flush(_) => {}
            Begun::Wait => {
                for (change, stable) in std::mem::take(&mut self.pending) {
                    model.end(change, outcome, stable);
                }
            }
        }
    }

    /// The image was closed, which waits for everything and makes it stable.
    pub(crate) fn closed(&mut self, well: bool) {
        self.end(Begun::Wait, well);
        if let Some(model) = self.model.as_mut().filter(|_| well) {
            let flush = model.begin_flush();
            model.end_flush(flush);
        }
    }
}

/// A request as the words of block-io say it.
struct Request {
    range: ByteRange,
    pattern: u8,
    is_zero: bool,
    stable: Stable,
}

/// The byte that is written where none is said.
const PATTERN: u8 = 205;

impl Request {
    fn parse(words: &[&str]) -> Option<Self> {
        let (mut pattern, mut is_zero, mut stable) = (PATTERN, false, Stable::Later);
        let mut numbers = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-') else {
                numbers.push(parse_size(word)?);
                continue;
            };
            for (at, letter) in letters.char_indices() {
                match letter {
                    'z' => is_zero = true,
                    'f' => stable = Stable::Now,
                    'P' => {
                        let attached = &letters[at + 1..];
                        let text = if attached.is_empty() { words.next()? } else { attached };
                        pattern = u8::try_from(parse_size(text)?).ok()?;
                        break;
                    }
                    // What a file holds is not followed.
                    's' => return None,
                    _ => {}
                }
            }
        }
        let (offset, lens) = numbers.split_first()?;
        let range = ByteRange::new(*offset, lens.iter().sum()).ok()?;
        Some(Self { range, pattern, is_zero, stable })
    }

    fn source(&self) -> Source {
        let bytes = vec![self.pattern; to_usize(self.range.len())];
        Source::Bytes(self.range.offset(), bytes.into())
    }
}

/// All bytes of a disk.
async fn contents(spec: &ImageSpec) -> Result<Vec<u8>, String> {
    let node = open(spec).await.map_err(|error| format!("cannot open it: {error}"))?;
    let read = read_all(&node).await;
    let closed = graph::close(&node).await;
    let bytes = read?;
    closed.map_err(|error| format!("cannot close it: {error}"))?;
    Ok(bytes)
}

async fn read_all(node: &Node) -> Result<Vec<u8>, String> {
    let len = node.len();
    if len > FOLLOWED_LEN_MAX {
        return Err(format!("a disk of {len} bytes is too long to be crashed"));
    }
    let failed = |error| format!("cannot read it: {error}");
    let buf = IoBuf::zeroed(to_usize(len), Alignment::PAGE).map_err(failed)?;
    node.read(ByteRange::up_to(len), buf.clone().into()).await.map_err(failed)?;
    Ok(buf.to_vec())
}

/// The image as the configuration opens it, with nothing below its format.
fn image(world: &World) -> ImageSpec {
    ImageSpec {
        format: Some(world.config.format.driver.to_owned()),
        ..ImageSpec::new(world.names.image.clone())
    }
}

/// Images of all files at one moment, by name.
type Images = BTreeMap<String, CrashImage>;

fn crash_all(disks: &[(String, Arc<CrashDisk>)], rng: &mut ChaCha8Rng) -> Images {
    disks.iter().map(|(name, disk)| (name.clone(), disk.crash(rng))).collect()
}

/// `crash COUNT [SEED]`: so many images that a crash may leave now must be good.
pub(crate) async fn crash(words: &mut Words, args: &[&str]) -> Did {
    let numbers: Option<Vec<u64>> = args.iter().map(|text| text.parse().ok()).collect();
    let (count, first) = match numbers.as_deref() {
        Some([count]) => (*count, 0),
        Some([count, seed]) => (*count, *seed),
        _ => return words.misused("crash COUNT [SEED]"),
    };
    if let Err(problem) = words.known.look(&words.world, &image(&words.world)).await {
        words.say(&problem);
        return Did::Badly;
    }
    let Some(disks) = words.world.files.as_ref().map(|files| files.crash_disks()) else {
        return words.misused("crash, on the protocol crash");
    };
    let Some(model) = words.known.model.clone() else { return Did::Badly };
    for seed in first..first.saturating_add(count) {
        let images = crash_all(&disks, &mut ChaCha8Rng::seed_from_u64(seed));
        if judge(words, &model, &images, &format!("seed {seed}")).await == Did::Badly {
            return Did::Badly;
        }
    }
    Did::Well
}

/// `crash-during COUNT WORDS`: so many images that crashes may leave while the words run must be good.
pub(crate) async fn crash_during(words: &mut Words, count: usize, line: &str) -> Did {
    if let Err(problem) = words.known.look(&words.world, &image(&words.world)).await {
        words.say(&problem);
        return Did::Badly;
    }
    let Some(disks) = words.world.files.as_ref().map(|files| files.crash_disks()) else {
        return words.misused("crash-during, on the protocol crash");
    };
    let mut during = Known { model: words.known.model.clone(), ..Known::default() };
    let followed = !matches!(during.begin(line), Begun::Nothing);
    let taken = Arc::new(parking_lot::Mutex::new(Taken {
        count,
        moments: 0,
        rng: ChaCha8Rng::seed_from_u64(0),
        images: Vec::new(),
    }));
    for (_, disk) in &disks {
        let (taken, disks) = (Arc::clone(&taken), disks.clone());
        disk.watch(move |_| taken.lock().look(&disks));
    }
    let did = words.act(line).await;
    for (_, disk) in &disks {
        disk.watch(|_| ());
    }
    let Some(mut model) = during.model else { return Did::Badly };
    if !followed {
        let after = match contents(&image(&words.world)).await {
            Ok(after) => after,
            Err(problem) => {
                words.say(&problem);
                return Did::Badly;
            }
        };
        let range = ByteRange::up_to(to_u64(after.len()));
        let source = Source::Bytes(0, after.as_slice().into());
        let _resizing = model.begin_truncate(OpId::MAX - 1, range.len());
        let _changing = model.begin(OpId::MAX, range, source, Effect::Replaces);
    }
    let images = std::mem::take(&mut taken.lock().images);
    for (moment, images) in &images {
        if judge(words, &model, images, &format!("moment {moment}")).await == Did::Badly {
            return Did::Badly;
        }
    }
    did
}

/// Images of some moments, each moment as likely as any other.
struct Taken {
    count: usize,
    moments: usize,
    rng: ChaCha8Rng,
    images: Vec<(usize, Images)>,
}

impl Taken {
    fn look(&mut self, disks: &[(String, Arc<CrashDisk>)]) {
        self.moments += 1;
        let place = if self.images.len() < self.count {
            self.images.len()
        } else {
            self.rng.random_range(0..self.moments)
        };
        if place >= self.count {
            return;
        }
        let taken = (self.moments, crash_all(disks, &mut self.rng));
        match self.images.get_mut(place) {
            Some(slot) => *slot = taken,
            None => self.images.push(taken),
        }
    }
}

/// Whether images are good; says what is wrong with them.
async fn judge(words: &Words, model: &DurableModel, images: &Images, when: &str) -> Did {
    let Err(problem) = survives(&words.world, model, images).await else { return Did::Well };
    words.say(&format!("after the crash of {when}: {problem}"));
    for (name, image) in images {
        words.say(&format!("{name}: {image}"));
    }
    Did::Badly
}

/// Whether what a crash has left opens, holds what it must, and is a good image afterwards.
async fn survives(world: &World, model: &DurableModel, images: &Images) -> Result<(), String> {
    let bytes = images.iter().map(|(name, image)| (name.clone(), image.bytes.clone())).collect();
    let files = Files::holding(&bytes).map_err(|error| error.to_string())?;
    let said = Arc::new(parking_lot::Mutex::new(String::new()));
    let heard = Arc::clone(&said);
    let _guard = surroundings::enter(Surroundings {
        registry: registry_over(&files),
        messages: Arc::new(move |text| {
            let mut heard = heard.lock();
            heard.push_str(text);
            heard.push('\n');
        }),
    });
    let spec = ImageSpec { flags: OpenFlags::READ_WRITE, ..image(world) };
    let node = open(&spec).await.map_err(|error| format!("cannot open it: {error}"))?;
    let found = read_all(&node).await;
    let worked = match &found {
        Ok(bytes) => write_on(&node, to_u64(bytes.len())).await,
        Err(_) => Ok(()),
    };
    let closed = graph::close(&node).await;
    model.check(&found?).map_err(|loss| loss.to_string())?;
    worked?;
    closed.map_err(|error| format!("cannot close it: {error}"))?;
    if !world.config.format.checks() {
        return Ok(());
    }
    let mut out = Output::buffer();
    let line = ["block-img", "check", "-f", world.config.format.driver, &world.names.image];
    match img::main(line.map(OsString::from), &mut out) {
        // No errors, or leaks alone.
        0 | 3 => Ok(()),
        // Version 2 has no mark that says that flags may be wrong which harm nobody.
        2 if world.config.format.name == "qcow2-v2" => harmless(world, images),
        status => Err(format!("check ends with {status}:\n{}{}", said.lock(), out.text())),
    }
}

/// Whether what is wrong with a qcow2 image after a crash harms nobody.
fn harmless(world: &World, images: &Images) -> Result<(), String> {
    let bytes = images.get(&world.names.image).map(|image| image.bytes.as_slice());
    let image = Qcow2Image::open(bytes.unwrap_or_default()).map_err(|error| error.to_string())?;
    let report = image.check().map_err(|error| error.to_string())?;
    if report.dangers() == 0 { Ok(()) } else { Err(format!("naive check: {report}")) }
}

/// The image must go on to work: a block at its start and one at its end are written and read.
async fn write_on(node: &Node, len: u64) -> Result<(), String> {
    let block = BLOCK.min(len);
    for offset in [0, len - block] {
        let failed = |what: &str, error| format!("cannot {what} {offset} after the crash: {error}");
        let range = ByteRange::new(offset, block).map_err(|error| error.to_string())?;
        let buf = || IoBuf::zeroed(to_usize(block), Alignment::PAGE);
        let written = buf().map_err(|error| failed("write", error))?;
        let read = buf().map_err(|error| failed("read", error))?;
        written.fill(PATTERN);
        node.write(range, written.clone().into(), block_core::RequestFlags::FUA)
            .await
            .map_err(|error| failed("write", error))?;
        node.read(range, read.clone().into()).await.map_err(|error| failed("read", error))?;
        if read.to_vec() != written.to_vec() {
            return Err(format!("what is written to {offset} after the crash does not read back"));
        }
    }
    Ok(())
}

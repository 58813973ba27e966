//! The words of a scenario, and what each of them does.
//!
//! Those of block-io go to a session of `block_tools::io_cmd`, those of block-img to `block_tools::img`, in
//! process, so that their outputs are the tools' own. The image is opened by the first word that needs it, and
//! closed before a word of block-img.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Write};
use std::sync::Arc;

use block_core::OpenFlags;
use block_tools::img::{self, Output};
use block_tools::io_cmd::{BufferPlace, Outcome, Session};
use block_tools::open::{AioMode, CacheMode, ImageSpec};
use block_tools::spec::image_opts;
use block_tools::surroundings::{self, Surroundings};
use parking_lot::Mutex;

use crate::filter;
use crate::world::World;
use crate::{cancel, crash};

/// The name that sessions give themselves.
const PROGRAM: &str = "block-io";

/// Zeroes that are fewer than so many bytes are written as data, where a word asks for that.
const MANY: u64 = 1 << 30;

/// The status of a check that found leaks and nothing else.
const LEAKS: u8 = 3;

/// What a word does; the first list is told in the README beside the scenarios.
pub(crate) struct Words {
    pub(crate) world: World,
    /// Options of creation that the scenario adds.
    pub(crate) options: Option<String>,
    /// Length of the disk, as the head says it.
    pub(crate) size: String,
    /// Whether blkdebug stands below the format.
    pub(crate) debugged: bool,
    session: Option<Session>,
    /// Rules of blkdebug for the next opening.
    rules: Vec<String>,
    /// Its other options.
    shape: Vec<String>,
    text: Text,
    /// What the disk holds and may hold, once it is crashed.
    pub(crate) known: crash::Known,
}

/// What a word did.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Did {
    /// What it was to do.
    Well,
    /// It failed, and said why.
    Badly,
}

/// Text that a session writes to.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock());
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn push(&self, text: &str) {
        let mut bytes = self.0.lock();
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(b'\n');
    }
}

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Words {
    /// Nothing open yet.
    pub(crate) fn new(world: World, options: Option<String>, size: String, debugged: bool) -> Self {
        let (session, text, known) = (None, Text::default(), crash::Known::default());
        let (rules, shape) = (Vec::new(), Vec::new());
        Self { world, options, size, debugged, session, rules, shape, text, known }
    }

    /// Makes drivers and messages of this run those of this thread.
    pub(crate) fn enter(&self) -> surroundings::Guard {
        let text = self.text.clone();
        surroundings::enter(Surroundings {
            registry: Arc::clone(&self.world.registry),
            messages: Arc::new(move |message| text.push(message)),
        })
    }

    /// Does one step and gives the lines that came of it.
    pub(crate) async fn run(&mut self, step: &str) -> Vec<String> {
        let step = self.world.names.expand(step);
        let did = self.act(&step).await;
        let text = self.text.take();
        let mut lines = self.world.names.lines(&text);
        if did == Did::Badly && lines.is_empty() {
            lines.push("failed".to_owned());
        }
        lines
    }

    /// Closes what is open.
    pub(crate) async fn finish(&mut self) -> Vec<String> {
        self.close().await;
        let text = self.text.take();
        self.world.names.lines(&text)
    }

    pub(crate) fn act<'a>(&'a mut self, step: &'a str) -> futures::future::LocalBoxFuture<'a, Did> {
        Box::pin(self.dispatch(step))
    }

    async fn dispatch(&mut self, step: &str) -> Did {
        let words = split(step);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let Some((&first, rest)) = words.split_first() else { return Did::Well };
        match first {
            "abort" | "quit" | "q" | "sigraise" => self.misused("this is no word of scenarios"),
            "create" => self.create(rest).await,
            "check" | "check-leaks-ok" if !self.world.config.format.checks() => Did::Well,
            "check-leaks-ok" => self.check_leaks_ok(rest).await,
            "check" | "snapshot" | "info" | "commit" | "rebase" | "amend" => {
                self.img_on_image(first, rest, Place::Last).await
            }
            "resize" | "compare" => self.img_on_image(first, rest, Place::BeforeLast).await,
            "bitmap" => self.img_on_image(first, rest, Place::BeforeLast).await,
            "convert" | "measure" | "dd" => {
                self.close().await;
                self.img(&words)
            }
            "img" => {
                self.close().await;
                self.img(rest)
            }
            "map" => self.map(rest).await,
            "in" => self.in_other(step, rest).await,
            "io" => self.io(step.trim_start_matches("io").trim()).await,
            "open" | "reopen" => {
                self.close().await;
                self.open(rest).await
            }
            "close" => self.close().await,
            "inject-error" => {
                self.close().await;
                self.rules.push(rest.join(" "));
                Did::Well
            }
            "clear-errors" => {
                self.close().await;
                self.rules.clear();
                Did::Well
            }
            "blkdebug" => {
                self.close().await;
                self.shape = rest.iter().map(|text| (*text).to_owned()).collect();
                Did::Well
            }
            "mark" => {
                drop(self.counts());
                Did::Well
            }
            "aio_flush" => self.aio_flush(step).await,
            "expect-error" => self.expect_error(step, rest).await,
            "requests" => self.requests(),
            "cancel-zero" => self.cancel_zero(rest).await,
            "crash" => crash::crash(self, rest).await,
            "crash-during" => self.crash_during(step, rest).await,
            "target" => self.target(rest),
            _ => self.io(step).await,
        }
    }

    /// Says something as part of the output.
    pub(crate) fn say(&self, line: &str) {
        self.text.push(line);
    }

    /// Says that a word is used wrongly.
    pub(crate) fn misused(&self, usage: &str) -> Did {
        self.say(&format!("usage: {usage}"));
        Did::Badly
    }

    /// `create [-o OPTIONS] [-b BACKING [-F FORMAT]] [-u] [NAME] [SIZE]`
    async fn create(&mut self, words: &[&str]) -> Did {
        self.close().await;
        let format = self.world.config.format;
        let (mut options, mut args) = (Vec::new(), Vec::new());
        let (mut name, mut size) = (None, None);
        let (mut backing_format, mut has_backing) = (None, false);
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                "-o" => options.extend(words.next().map(|text| (*text).to_owned())),
                "-b" => {
                    let file = words.next().copied().unwrap_or_default();
                    let inside = !file.contains('/') && self.world.target.is_some();
                    let dir = &self.world.names.dir;
                    let file = if inside { format!("{dir}/{file}") } else { file.to_owned() };
                    args.extend(["-b".to_owned(), file]);
                    has_backing = true;
                }
                "-F" => backing_format = words.next().copied(),
                "-u" => args.push("-u".to_owned()),
                word if word.starts_with(|c: char| c.is_ascii_digit()) => size = Some(word),
                word => name = Some(word),
            }
        }
        if has_backing {
            let given = backing_format.unwrap_or(format.driver);
            args.extend(["-F".to_owned(), given.to_owned()]);
        }
        let path = match name {
            Some(name) if name.contains('/') => name.to_owned(),
            Some(name) => format!("{}/{name}", self.world.names.dir),
            None => self.world.names.image.clone(),
        };
        let beside = match name {
            Some(_) => path.clone(),
            None => format!("{}/t.{}", self.world.names.dir, format.driver),
        };
        let own = [Some(format.options.replace("$NAME", &beside)), self.options.clone()];
        options.splice(0..0, own.into_iter().flatten().filter(|text| !text.is_empty()));
        let mut line = vec!["create".to_owned(), "-q".to_owned(), "-f".to_owned()];
        line.push(format.driver.to_owned());
        if !options.is_empty() {
            line.extend(["-o".to_owned(), options.join(",")]);
        }
        line.extend(args);
        line.push(path);
        let default = self.size.clone();
        match size {
            Some(size) => line.push(size.to_owned()),
            None if has_backing => {}
            None => line.push(default.clone()),
        }
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        let made = self.img(&line);
        if let Some(files) = &self.world.files {
            files.settle().await;
        }
        let is_junk = self.world.config.protocol.name == "iscsi-junk" && name.is_none();
        if made == Did::Well && is_junk {
            // Who makes a raw image of a unit that holds anything writes zeroes first.
            let len = size.map_or(default, str::to_owned);
            return self.target(&["write", "0", "0", &len]);
        }
        made
    }

    /// A word of block-img with the image where it belongs, unless it is named.
    async fn img_on_image(&mut self, word: &str, words: &[&str], place: Place) -> Did {
        self.close().await;
        let image = self.world.names.image.clone();
        let driver = self.world.config.format.driver;
        let mut line = vec![word, "-f", driver];
        if word == "compare" && !words.contains(&"-F") {
            line.extend(["-F", driver]);
        }
        let dir = &self.world.names.dir;
        let beside: Vec<String> = words
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let is_file = word == "compare" && index + 1 == words.len() && !text.contains('/');
                if is_file { format!("{dir}/{text}") } else { (*text).to_owned() }
            })
            .collect();
        let words: Vec<&str> = beside.iter().map(String::as_str).collect();
        let named = words.iter().any(|text| *text == image || text.starts_with(dir.as_str()));
        match (place, words.split_last()) {
            (Place::Last, _) if word == "rebase" || !named => {
                line.extend(&words);
                line.push(&image);
            }
            (Place::BeforeLast, Some((last, before))) if word == "compare" || !named => {
                line.extend(before);
                line.extend([image.as_str(), last]);
            }
            _ => line.extend(&words),
        }
        self.img(&line)
    }

    /// `check-leaks-ok`: a check that says nothing of leaks.
    async fn check_leaks_ok(&mut self, words: &[&str]) -> Did {
        let did = self.img_on_image("check", words, Place::Last).await;
        let said = self.text.take();
        if said.ends_with(&format!("status {LEAKS}\n")) {
            return Did::Well;
        }
        self.say(said.trim_end());
        did
    }

    /// Runs a command line of block-img.
    pub(crate) fn img(&mut self, words: &[&str]) -> Did {
        let looks = matches!(words.first(), Some(&("map" | "info" | "compare" | "measure")));
        let checks = words.first() == Some(&"check") && !words.contains(&"-r");
        if !looks && !checks {
            self.known.forget();
        }
        let mut out = Output::buffer();
        let args = std::iter::once("block-img").chain(words.iter().copied());
        let status = img::main(args.map(OsString::from), &mut out);
        // Messages were said while it ran; its output comes after them.
        let text = out.text();
        if !text.is_empty() {
            self.say(text.trim_end());
        }
        if status == 0 {
            return Did::Well;
        }
        self.say(&format!("status {status}"));
        Did::Badly
    }

    async fn map(&mut self, words: &[&str]) -> Did {
        self.close().await;
        let (image, driver) = (self.world.names.image.clone(), self.world.config.format.driver);
        let mut line = vec!["map", "--output=json", "-f", driver];
        line.extend(words);
        line.push(&image);
        let did = self.img(&line);
        let text = self.text.take();
        match filter::map(&text) {
            Ok(shown) if did == Did::Well => self.say(shown.trim_end()),
            _ => self.say(&text),
        }
        did
    }

    /// The image as the configuration says that it is opened.
    fn spec(&self) -> ImageSpec {
        let config = self.world.config;
        let mut spec = ImageSpec::new(self.world.names.image.clone());
        spec.format = Some(config.format.driver.to_owned());
        spec.flags = OpenFlags::READ_WRITE;
        spec.cache = CacheMode::parse(config.cache.mode).unwrap_or_default();
        spec.aio = config.cache.aio.and_then(AioMode::parse);
        spec
    }

    /// `cancel-zero OFFSET LENGTH AFTER`, on storage that takes pieces of 4096 bytes and no zeroes. The node
    /// is that storage itself: between pieces of its own a node hears of a cancel, not below.
    async fn cancel_zero(&mut self, words: &[&str]) -> Did {
        self.close().await;
        self.known.forget();
        let mut spec = self.spec();
        let image = std::mem::take(&mut spec.name);
        spec.format = Some("blkdebug".to_owned());
        spec.options.set("image.filename", image);
        let zeroes = MANY.to_string();
        for (name, value) in
            [("align", "512"), ("max-transfer", "4096"), ("opt-write-zero", &*zeroes)]
        {
            spec.options.set(name, value);
        }
        let requests = Arc::clone(&self.world.requests);
        match cancel::cancel_zero(&spec, &requests, words).await {
            Ok(told) => {
                self.say(&told);
                Did::Well
            }
            Err(problem) => {
                self.say(&problem);
                Did::Badly
            }
        }
    }

    /// Opens the image as the configuration says, and as `words` say.
    async fn open(&mut self, words: &[&str]) -> Did {
        let mut spec = self.spec();
        let mut words = words.iter();
        let usage = "reopen [-r] [-s] [-t CACHE] [-o OPTIONS]";
        while let Some(word) = words.next() {
            match *word {
                "-r" => spec.flags.writable = false,
                "-s" => spec.writes = block_tools::open::Writes::TemporaryOverlay,
                "-C" => spec.backing_reads = block_tools::open::BackingReads::Copy,
                "-t" => match words.next().and_then(|name| CacheMode::parse(name)) {
                    Some(cache) => spec.cache = cache,
                    None => return self.misused(usage),
                },
                "-o" => match image_opts::parse(words.next().copied().unwrap_or_default()) {
                    Ok(options) => spec.options = options,
                    Err(_) => return self.misused(usage),
                },
                _ => return self.misused(usage),
            }
        }
        if self.debugged {
            self.debug(&mut spec);
        }
        if let Err(problem) = self.known.look(&self.world, &spec).await {
            self.say(&problem);
            return Did::Badly;
        }
        self.open_spec(&spec).await
    }

    /// Puts blkdebug below the format.
    fn debug(&self, spec: &mut ImageSpec) {
        let image = std::mem::take(&mut spec.name);
        spec.options.set("file.driver", "blkdebug");
        spec.options.set("file.image.filename", image);
        for setting in &self.shape {
            let (name, value) = setting.split_once('=').unwrap_or((setting, "on"));
            spec.options.set(format!("file.{name}"), value);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            for setting in rule.split_whitespace() {
                let (name, value) = setting.split_once('=').unwrap_or((setting, "on"));
                let number = errno(value).filter(|_| name == "errno");
                let value = number.map_or(value.to_owned(), |number| number.to_string());
                spec.options.set(format!("file.inject-error.{index}.{name}"), value);
            }
        }
    }

    async fn open_spec(&mut self, spec: &ImageSpec) -> Did {
        let (out, err) = (Box::new(self.text.clone()), Box::new(self.text.clone()));
        let mut session = Session::new(PROGRAM, out, err, BufferPlace::Aligned);
        if session.open(spec).await != Outcome::Done {
            return Did::Badly;
        }
        self.session = Some(session);
        Did::Well
    }

    /// Closes the image, if it is open.
    pub(crate) async fn close(&mut self) -> Did {
        let Some(mut session) = self.session.take() else { return Did::Well };
        let well = session.finish().await == Outcome::Done;
        self.known.closed(well);
        if well { Did::Well } else { Did::Badly }
    }

    /// Runs a word of block-io on the image, which it opens if it is not.
    async fn io(&mut self, line: &str) -> Did {
        if self.session.is_none() && self.open(&[]).await == Did::Badly {
            return Did::Badly;
        }
        let begun = self.known.begin(line);
        let Some(session) = &mut self.session else { return Did::Badly };
        let outcome = session.run(line).await;
        self.known.end(begun, outcome == Outcome::Done);
        if outcome == Outcome::Done { Did::Well } else { Did::Badly }
    }

    /// `in NAME [-f FORMAT] WORDS`: words of block-io on another file.
    async fn in_other(&mut self, step: &str, words: &[&str]) -> Did {
        self.close().await;
        let usage = "in NAME [-f FORMAT] WORDS";
        let (name, rest) = match words {
            [name, rest @ ..] if !rest.is_empty() => (*name, rest),
            _ => return self.misused(usage),
        };
        let (format, rest) = match rest {
            ["-f", format, rest @ ..] => (*format, rest),
            rest => (self.world.config.format.driver, rest),
        };
        let Some(word) = rest.first() else { return self.misused(usage) };
        let path = match name.contains('/') {
            true => name.to_owned(),
            false => format!("{}/{name}", self.world.names.dir),
        };
        let mut spec = ImageSpec::new(path);
        spec.format = Some(format.to_owned());
        spec.flags = OpenFlags::READ_WRITE;
        // Whose contents are followed is the image.
        self.known.forget();
        if self.open_spec(&spec).await == Did::Badly {
            return Did::Badly;
        }
        let line = step.split_once(&format!(" {word}")).map_or("", |(_, rest)| rest);
        let line = format!("{word}{line}");
        let outcome = match &mut self.session {
            Some(session) => session.run(&line).await,
            None => Outcome::Failed,
        };
        let closed = self.close().await;
        if outcome == Outcome::Done { closed } else { Did::Badly }
    }

    /// `expect-error ERRNO WORDS`: words that must fail with this error.
    async fn expect_error(&mut self, step: &str, words: &[&str]) -> Did {
        let [name, word, ..] = words else {
            return self.misused("expect-error ERRNO WORDS");
        };
        let Some(number) = errno(name) else {
            return self.misused("expect-error ERRNO WORDS, with a name like ENOSPC");
        };
        let rest = step.split_once(&format!(" {name} ")).map_or(*word, |(_, rest)| rest);
        let did = self.act(rest).await;
        let said = self.text.take();
        let expected = block_core::Error::Os(number).errno_text();
        if did == Did::Badly && said.contains(&expected) {
            return Did::Well;
        }
        let how = if did == Did::Well { "it succeeded" } else { "it failed otherwise" };
        self.say(&format!("expected {name}, but {how}\n{said}"));
        Did::Badly
    }

    /// `crash-during COUNT WORDS`
    async fn crash_during(&mut self, step: &str, words: &[&str]) -> Did {
        let count = words.first().and_then(|count| Some((count, count.parse().ok()?)));
        let Some((text, count)) = count.filter(|(_, count)| (1..=1000).contains(count)) else {
            return self.misused("crash-during COUNT WORDS");
        };
        let line = step.split_once(&format!(" {text} ")).map_or("", |(_, rest)| rest);
        crash::crash_during(self, count, line.trim()).await
    }

    /// `target WORDS`: something happens to the unit that the initiator did not ask for.
    fn target(&mut self, words: &[&str]) -> Did {
        let Some(target) = &self.world.target else {
            return self.misused("target, on iSCSI");
        };
        match target.happen(words) {
            Ok(()) => Did::Well,
            Err(usage) => self.misused(usage),
        }
    }

    /// Waits for everything; what it tells is sorted, since requests end in any order.
    async fn aio_flush(&mut self, step: &str) -> Did {
        let did = self.io(step).await;
        let text = self.text.take();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.iter().for_each(|line| self.say(line));
        did
    }

    /// Says how many requests went to the files, or commands to the unit, since the last time.
    fn requests(&mut self) -> Did {
        let counts = self.counts();
        if counts.is_empty() {
            self.say("none");
        }
        for (kind, count) in counts {
            self.say(&format!("{kind} {count}"));
        }
        Did::Well
    }

    /// What was counted since the last time.
    fn counts(&self) -> BTreeMap<String, u64> {
        match &self.world.target {
            None => self.world.requests.take(),
            Some(target) => target.with(|target| {
                let device = target.device_mut();
                let counts = device.counters().iter();
                let counts = counts.map(|(code, action, n)| (command_name(code, action), n));
                let counts = counts.collect();
                device.reset_counters();
                counts
            }),
        }
    }
}

/// Where a word of block-img has the image.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
enum Place {
    Last,
    BeforeLast,
}

/// The words of a line; quotes keep spaces together.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The number of an error by its name.
fn errno(name: &str) -> Option<i32> {
    Some(match name {
        "EIO" => libc::EIO,
        "ENOSPC" => libc::ENOSPC,
        "EINVAL" => libc::EINVAL,
        "ENOTSUP" => libc::ENOTSUP,
        "EPERM" => libc::EPERM,
        "EACCES" => libc::EACCES,
        "ENOENT" => libc::ENOENT,
        "EBUSY" => libc::EBUSY,
        "EFBIG" => libc::EFBIG,
        "ENOMEM" => libc::ENOMEM,
        "EEXIST" => libc::EEXIST,
        "EROFS" => libc::EROFS,
        "ETIMEDOUT" => libc::ETIMEDOUT,
        "ECANCELED" => libc::ECANCELED,
        "ENOMEDIUM" => libc::ENOMEDIUM,
        _ => return None,
    })
}

/// A SCSI command as people call it.
fn command_name(code: u8, action: Option<u8>) -> String {
    let name = match (code, action) {
        (0x00, _) => "TEST-UNIT-READY",
        (0x12, _) => "INQUIRY",
        (0x1a | 0x5a, _) => "MODE-SENSE",
        (0x25, _) => "READ-CAPACITY(10)",
        (0x28, _) => "READ(10)",
        (0x2a, _) => "WRITE(10)",
        (0x35, _) => "SYNCHRONIZE-CACHE(10)",
        (0x41, _) => "WRITE-SAME(10)",
        (0x42, _) => "UNMAP",
        (0x88, _) => "READ(16)",
        (0x8a, _) => "WRITE(16)",
        (0x91, _) => "SYNCHRONIZE-CACHE(16)",
        (0x93, _) => "WRITE-SAME(16)",
        (0x9e, Some(0x10)) => "READ-CAPACITY(16)",
        (0x9e, Some(0x12)) => "GET-LBA-STATUS",
        (0xa0, _) => "REPORT-LUNS",
        (0xa3, _) => "REPORT-SUPPORTED",
        _ => return format!("{code:#04x}"),
    };
    name.to_owned()
}

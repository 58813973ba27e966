//! `blkdebug`: fails or holds requests at points that drivers name, for tests.
//!
//! Drivers tell what they are about to do by [`BlockDriver::event`]; rules from a configuration file or
//! from options then fail what comes next (`rules`), breakpoints hold it
//! ([`Breakpoints`]). The filter can also ask for requests of a certain shape
//! (`align`, `max-transfer`, `opt-write-zero`, ...), so that a test meets the layer's ways for them.
//!
//! An event is no request: a breakpoint holds the next request that arrives here after it, which is the
//! one that the event tells of, unless another request was quicker.
//!
//! Invariants: a request that fails by a rule has done nothing; a request is held before a rule is looked at;
//! The state's lock is innermost, and nothing runs under it.

mod config;
mod events;
mod limits;
mod rules;

use std::future::Future;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use futures::channel::oneshot;
use futures::future::{BoxFuture, poll_fn};
use parking_lot::Mutex;

use crate::ability::{BreakpointChange, BreakpointListener, Breakpoints};
use crate::access::Access;
use crate::buf::IoVec;
use crate::driver::{
    BlockDriver, Child, ChildRole, Children, Exactness, Prealloc, ReopenOptions, ReopenState,
};
use crate::error::{Error, OpenError, Problem, Result};
use crate::flags::{Capabilities, RequestFlags};
use crate::io::pool;
use crate::limits::BlockLimits;
use crate::node::Node;
use crate::options::Options;
use crate::range::{Alignment, ByteRange};
use crate::registry::{DriverFactory, OpenContext};
use crate::request::status::{DriverStatus, StatusDetail};
use limits::Shape;
use rules::{Delivery, IoTypes, Rule, Rules};

/// The name of the driver and of its scheme.
const NAME: &str = "blkdebug";

/// The filter.
pub struct BlkdebugDriver {
    image: Node,
    shape: Shape,
    access: Access,
    /// Innermost lock; held for a look or a change.
    state: Mutex<State>,
}

struct State {
    rules: Rules,
    /// Tags of breakpoints whose event has come, for the next request.
    armed: Vec<String>,
    held: Vec<Held>,
    /// Who waits for a request to be held, and under which tag.
    waiting: Vec<(String, oneshot::Sender<()>)>,
    listener: Option<BreakpointListener>,
}

/// A request that waits. Dropping this lets it go on.
struct Held {
    tag: String,
    _release: oneshot::Sender<()>,
}

impl BlkdebugDriver {
    fn new(image: Node, shape: Shape, rules: Vec<Rule>) -> Self {
        let state = State {
            rules: Rules::new(rules),
            armed: Vec::new(),
            held: Vec::new(),
            waiting: Vec::new(),
            listener: None,
        };
        let driver = Self { image, shape, access: Access::new(true), state: Mutex::new(state) };
        driver.happened(events::NONE);
        driver
    }

    fn happened(&self, event: &str) {
        let mut state = self.state.lock();
        let tags = state.rules.event(event);
        state.armed.extend(tags);
    }

    /// Holds the request that calls this for every breakpoint whose event has come, one after the other.
    async fn hold(&self) {
        while let Some(released) = self.hold_once() {
            // Dropping the sender is what releases it.
            let _ = released.await;
        }
    }

    fn hold_once(&self) -> Option<oneshot::Receiver<()>> {
        let mut state = self.state.lock();
        let tag = (!state.armed.is_empty()).then(|| state.armed.remove(0))?;
        let (release, released) = oneshot::channel();
        let (woken, still): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.waiting).into_iter().partition(|(wanted, _)| *wanted == tag);
        state.waiting = still;
        state.held.push(Held { tag: tag.clone(), _release: release });
        let listener = state.listener.clone();
        drop(state);
        if let Some(listener) = listener {
            listener(&tag, BreakpointChange::Suspended);
        }
        // Nobody may be waiting any more.
        for (_, sender) in woken {
            let _ = sender.send(());
        }
        Some(released)
    }

    /// Lets requests go on: the first that is held under `tag`, or all that `which` names.
    fn release(&self, most: usize, which: impl Fn(&str) -> bool) -> usize {
        let mut state = self.state.lock();
        let mut released = Vec::new();
        let mut index = 0;
        while let Some(held) = state.held.get(index).filter(|_| released.len() < most) {
            if which(&held.tag) {
                released.push(state.held.remove(index));
            } else {
                index += 1;
            }
        }
        let listener = state.listener.clone();
        drop(state);
        for held in &released {
            if let Some(listener) = &listener {
                listener(&held.tag, BreakpointChange::Resumed);
            }
        }
        released.len()
    }

    /// What every request passes before it goes on: breakpoints, then rules.
    async fn pass(&self, what: IoTypes, range: ByteRange) -> Result<()> {
        self.hold().await;
        self.judge(what, range).await
    }

    async fn judge(&self, what: IoTypes, range: ByteRange) -> Result<()> {
        let injected = self.state.lock().rules.check(what, range);
        let Some(injected) = injected else { return Ok(()) };
        if injected.delivery == Delivery::NextTurn {
            next_turn().await;
        }
        Err(Error::Os(injected.errno))
    }

    /// Tells an event of the request that calls this, and holds it if a breakpoint says so.
    async fn stop_at(&self, event: &'static str) {
        self.happened(event);
        self.hold().await;
    }
}

/// Ready when the executor has had a turn.
fn next_turn() -> impl Future<Output = ()> {
    let mut yielded = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
}

#[async_trait]
impl BlockDriver for BlkdebugDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    fn limits(&self) -> BlockLimits {
        let image = self.image.limits();
        BlockLimits {
            // The image's node sees to that.
            min_mem_alignment: Alignment::ONE,
            ..self.shape.apply(image)
        }
    }

    fn capabilities(&self) -> Capabilities {
        self.image.capabilities()
    }

    fn is_read_only(&self) -> bool {
        self.access.is_read_only() || self.image.is_read_only()
    }

    fn children(&self) -> Children {
        let node = self.image.clone();
        Children::from_iter([Child { name: "image", role: ChildRole::Filtered, node }])
    }

    fn filtered(&self) -> Option<&Node> {
        Some(&self.image)
    }

    async fn preadv(self: Arc<Self>, range: ByteRange, iov: IoVec) -> Result<()> {
        self.pass(IoTypes::READ, range).await?;
        self.image.read(range, iov).await
    }

    async fn pwritev(
        self: Arc<Self>,
        range: ByteRange,
        iov: IoVec,
        flags: RequestFlags,
    ) -> Result<()> {
        self.hold().await;
        self.stop_at("pwritev").await;
        let written = match self.judge(IoTypes::WRITE, range).await {
            Ok(()) => self.image.write(range, iov, flags).await,
            failed => failed,
        };
        self.stop_at("pwritev_done").await;
        written
    }

    async fn pwrite_zeroes(self: Arc<Self>, range: ByteRange, flags: RequestFlags) -> Result<()> {
        // Less than what suits is left to the layer, which writes zeroes.
        if range.len() < self.shape.least_zeroes(self.image.limits()) {
            return Err(Error::Unsupported);
        }
        self.hold().await;
        self.stop_at("pwritev_zero").await;
        let written = match self.judge(IoTypes::WRITE_ZEROES, range).await {
            Ok(()) => self.image.write_zeroes(range, flags).await,
            failed => failed,
        };
        self.stop_at("pwritev_done").await;
        written
    }

    async fn pdiscard(self: Arc<Self>, range: ByteRange) -> Result<()> {
        if range.len() < self.shape.least_discard(self.image.limits()) {
            return Err(Error::Unsupported);
        }
        self.pass(IoTypes::DISCARD, range).await?;
        self.image.discard(range).await
    }

    async fn block_status(
        self: Arc<Self>,
        range: ByteRange,
        _: StatusDetail,
    ) -> Result<DriverStatus> {
        self.judge(IoTypes::BLOCK_STATUS, range).await?;
        Ok(DriverStatus::recurse(range.len(), self.image.clone(), range.offset()))
    }

    async fn flush_to_disk(self: Arc<Self>) -> Result<()> {
        self.pass(IoTypes::FLUSH, ByteRange::default()).await
    }

    async fn truncate(
        self: Arc<Self>,
        len: u64,
        exactness: Exactness,
        prealloc: Prealloc,
    ) -> Result<()> {
        self.hold().await;
        self.image.truncate(len, exactness, prealloc).await
    }

    async fn reopen_prepare(
        self: Arc<Self>,
        options: &ReopenOptions,
    ) -> Result<ReopenState, OpenError> {
        Ok(Access::prepare(options))
    }

    fn reopen_commit(&self, state: ReopenState) {
        self.access.commit(state);
    }

    fn event(&self, name: &'static str) {
        self.happened(name);
        self.image.driver().event(name);
    }

    fn as_breakpoints(&self) -> Option<&dyn Breakpoints> {
        Some(self)
    }
}

impl Breakpoints for BlkdebugDriver {
    fn set(&self, event: &str, tag: &str) -> Result<()> {
        let event = events::named(event).ok_or(Error::Os(libc::ENOENT))?;
        self.state.lock().rules.suspend(event, tag);
        Ok(())
    }

    fn remove(&self, tag: &str) -> Result<()> {
        let found = {
            let mut state = self.state.lock();
            let before = state.armed.len();
            state.armed.retain(|armed| armed != tag);
            state.rules.forget(Some(tag)) || state.armed.len() < before
        };
        self.release(usize::MAX, |held| held == tag);
        if found { Ok(()) } else { Err(Error::Os(libc::ENOENT)) }
    }

    fn resume(&self, tag: &str) -> Result<()> {
        match self.release(1, |held| held == tag) {
            0 => Err(Error::Os(libc::ENOENT)),
            _ => Ok(()),
        }
    }

    fn suspended(&self, tag: &str) -> BoxFuture<'static, ()> {
        let mut state = self.state.lock();
        if state.held.iter().any(|held| held.tag == tag) {
            return Box::pin(futures::future::ready(()));
        }
        state.waiting.retain(|(_, sender)| !sender.is_canceled());
        let (sender, receiver) = oneshot::channel();
        state.waiting.push((tag.to_owned(), sender));
        Box::pin(async move {
            // Gone with the filter: then nothing will be held any more.
            let _ = receiver.await;
        })
    }

    fn clear(&self) {
        {
            let mut state = self.state.lock();
            state.rules.forget(None);
            state.armed.clear();
        }
        self.release(usize::MAX, |_| true);
    }

    fn listen(&self, listener: BreakpointListener) {
        self.state.lock().listener = Some(listener);
    }
}

/// Opens `blkdebug`: `image`, `config`, rules, limits; or the name `blkdebug:CONFIG:IMAGE`, where CONFIG may
/// be empty.
pub struct BlkdebugFactory;

#[async_trait]
impl DriverFactory for BlkdebugFactory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn schemes(&self) -> &'static [&'static str] {
        &[NAME]
    }

    async fn open(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        if let Some(name) = options.take("filename") {
            let image = match name.strip_prefix("blkdebug:") {
                None => name.as_str(),
                Some(both) => {
                    let missing = || OpenError::Option {
                        option: "image".to_owned(),
                        problem: Problem::Missing,
                    };
                    let (config, image) = both.split_once(':').ok_or_else(missing)?;
                    if !config.is_empty() {
                        options.set("config", config);
                    }
                    image
                }
            };
            options.set("image.filename", image);
        }
        let mut rules = match options.take("config") {
            None => Vec::new(),
            Some(path) => config::parse(&read_config(path).await?)?,
        };
        rules.extend(config::take(&mut options)?);
        config::check_count(&rules)?;
        let shape = Shape::take(&mut options)?;
        let image = context.open_child(&mut options, "image").await?;
        options.finish()?;
        shape.check(image.limits())?;
        let mut driver = BlkdebugDriver::new(image, shape, rules);
        driver.access = Access::new(context.flags.writable);
        Ok(Arc::new(driver))
    }
}

/// The text of a configuration file.
async fn read_config(path: String) -> Result<String, OpenError> {
    use std::io::Read;

    let shown = std::path::PathBuf::from(&path);
    let failed = |error| OpenError::File { path: shown.clone(), error };
    let read = pool::run(move || {
        let mut bytes = Vec::new();
        // One more than may be, to notice that there is more.
        let file = std::fs::File::open(path)?.take(config::MAX_CONFIG_BYTES + 1);
        std::io::BufReader::new(file).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    let bytes = read.await.map_err(failed)?;
    if crate::range::to_u64(bytes.len()) > config::MAX_CONFIG_BYTES {
        return Err(failed(Error::Os(libc::EFBIG)));
    }
    String::from_utf8(bytes).map_err(|_| failed(Error::Os(libc::EILSEQ)))
}

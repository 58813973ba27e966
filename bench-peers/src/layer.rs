//! What the request layer costs by itself: 4 KiB requests to a node that does nothing.

use std::sync::Arc;
use std::time::Duration;

use block_core::io::exec::block_on;
use block_core::node::NodeOptions;
use block_core::proto::null::NullDriver;
use block_core::{Alignment, ByteRange, IoBuf, Node, RequestFlags};
use clap::Args;
use serde_json::{Value, json};

use crate::stopwatch::Stopwatch;
use crate::{Failure, allocations};

const LEN: u64 = 4096;
const DISK: u64 = 1 << 30;

/// Options of `layer`.
#[derive(Args)]
pub struct Arguments {
    /// How many requests of each kind.
    #[arg(long, default_value_t = 2_000_000)]
    count: u64,
}

/// Reads, writes and zero writes; aligned, so that nothing is padded.
pub fn run(arguments: &Arguments) -> Result<Value, Failure> {
    block_on(async {
        let node = Node::new(Arc::new(NullDriver::new(DISK, false)), NodeOptions::default());
        let buf = IoBuf::zeroed(LEN.try_into()?, Alignment::PAGE)?;
        let (count, none) = (arguments.count, RequestFlags::default());
        let place = |index: u64| ByteRange::new(index % (DISK / LEN) * LEN, LEN);
        let report = |(wall, cpu): (Duration, Duration), allocated: u64| {
            let nanoseconds = |time: Duration| time.as_secs_f64() * 1e9 / count as f64;
            json!({
                "nanoseconds": nanoseconds(wall),
                "cpu_nanoseconds": nanoseconds(cpu),
                "allocations": allocated as f64 / count as f64,
            })
        };

        let (watch, before) = (Stopwatch::start()?, allocations::count());
        for index in 0..count {
            node.read(place(index)?, buf.clone().into()).await?;
        }
        let read = report(watch.stop()?, allocations::count() - before);

        let (watch, before) = (Stopwatch::start()?, allocations::count());
        for index in 0..count {
            node.write(place(index)?, buf.clone().into(), none).await?;
        }
        let write = report(watch.stop()?, allocations::count() - before);

        let (watch, before) = (Stopwatch::start()?, allocations::count());
        for index in 0..count {
            node.write_zeroes(place(index)?, none).await?;
        }
        let zeroes = report(watch.stop()?, allocations::count() - before);
        Ok(json!({ "read": read, "write": write, "write_zeroes": zeroes }))
    })
}

//! `cancel-zero`: a long zero write that is cancelled while it runs.

use block_core::options::parse_size;
use block_core::range::to_usize;
use block_core::{Alignment, ByteRange, Cancel, Error, IoBuf, Node, RequestFlags, graph};
use block_tools::open::{ImageSpec, open};

use crate::world::Requests;

/// Sends a zero write, cancels it once `after` writes have reached the files, and looks at what it says of how
/// far it came: everything below is zero. Gives what is to be told.
pub(crate) async fn cancel_zero(
    spec: &ImageSpec,
    requests: &Requests,
    args: &[&str],
) -> Result<String, String> {
    let numbers: Option<Vec<u64>> = args.iter().map(|text| parse_size(text)).collect();
    let Some([offset, len, after]) = numbers.as_deref() else {
        return Err("usage: cancel-zero OFFSET LENGTH AFTER".to_owned());
    };
    let range = ByteRange::new(*offset, *len).map_err(|error| error.to_string())?;
    let node = open(spec).await.map_err(|error| error.to_string())?;
    let told = cancelled(&node, requests, range, *after).await;
    let closed = graph::close(&node).await;
    closed.map_err(|error| error.to_string())?;
    told
}

async fn cancelled(
    node: &Node,
    requests: &Requests,
    range: ByteRange,
    after: u64,
) -> Result<String, String> {
    let cancel = Cancel::new();
    requests.cancel_after(after, &cancel);
    let result = node.write_zeroes_cancellable(range, RequestFlags::empty(), &cancel).await;
    match result {
        Err(Error::Cancelled) => {}
        Ok(()) => return Err("it was done before it could be cancelled".to_owned()),
        Err(error) => return Err(format!("it failed: {error}")),
    }
    let done = cancel.done();
    if done == 0 || done >= range.len() {
        return Err(format!("it says that {done} of {} bytes are done", range.len()));
    }
    let buf = IoBuf::zeroed(to_usize(done), Alignment::PAGE).map_err(|error| error.to_string())?;
    buf.fill(1);
    let read = node.read(range.first(done), buf.clone().into()).await;
    read.map_err(|error| error.to_string())?;
    if !buf.is_zero() {
        return Err(format!("not all of the {done} bytes that are done are zero"));
    }
    Ok("cancelled, and what it says is done is zero".to_owned())
}

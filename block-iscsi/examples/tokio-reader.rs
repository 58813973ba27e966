//! Reads a unit of an iSCSI target on tokio.
//!
//! `tokio-reader iscsi://[user@]host[:port]/target/lun [OFFSET]` logs in and prints the first bytes at `OFFSET` (0).
//! A password comes from the environment (`LIBISCSI_CHAP_PASSWORD`) or a file (the option `password-file`).
//!
//! Everything runs on tokio: its sockets, its timers, its tasks. No thread is started and the feature `tcp`,
//! which has sockets of its own, is not needed. The same three functions make a connector of any runtime.

#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_core::{Alignment, ByteRange, IoBuf, Node, OpenFlags, Options};
use block_iscsi::config::IscsiConfig;
use block_iscsi::driver::{IscsiDriver, UnitOptions};
use block_iscsi::initiator::{Initiator, random_isid};
use block_iscsi::transport::futures_io::RuntimeConnector;
use block_iscsi::transport::{Connector, Portal};
use block_iscsi::unit::{ConnectorSleep, Retries};
use futures::FutureExt;
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncReadCompatExt;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tokio-reader: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (url, offset) = match arguments.as_slice() {
        [url] => (url, 0),
        [url, offset] => (url, offset.parse()?),
        _ => return Err("tokio-reader iscsi://[user@]host[:port]/target/lun [OFFSET]".into()),
    };
    let disk = open(url).await?;
    println!("{} bytes in blocks of {}", disk.len(), disk.limits().request_alignment.bytes());

    let buf = IoBuf::zeroed(512, Alignment::PAGE)?;
    // Requests are futures like any other, so tokio's timeouts work. A request whose future is dropped runs
    // on to its end, because it owns its buffers.
    let read = disk.read(ByteRange::new(offset, 512)?, buf.clone().into());
    tokio::time::timeout(Duration::from_secs(30), read).await??;
    println!("at {offset}: {:02x?}", buf.slice(0, 16).to_vec());
    // Logs out.
    disk.close().await?;
    Ok(())
}

/// The unit as a disk. Formats could stand above it, as above a file.
async fn open(url: &str) -> Result<Node> {
    let env = |name: &str| std::env::var(name).ok();
    let options = Options::filename(url).with("header-digest", "crc32c-none");
    let config = IscsiConfig::from_options(options, &env, random_isid()?)?;
    let connector = connector();
    // The pump moves the bytes of the session, and comes back when a connection is lost. It ends with it.
    let (initiator, pump) = Initiator::new(config.session, Arc::clone(&connector))?;
    tokio::spawn(pump);
    initiator.opened().await?;
    let unit = UnitOptions {
        lun: config.lun,
        flags: OpenFlags::READ_ONLY,
        filename: config.name,
        retries: Retries::default(),
    };
    let sleep = Arc::new(ConnectorSleep::new(connector));
    let driver = IscsiDriver::open(Arc::new(initiator), sleep, unit).await?;
    Ok(Node::new(driver, Default::default()))
}

/// What tokio has, as the initiator wants it: connections, a clock, and waiting.
fn connector() -> Arc<dyn Connector> {
    let start = Instant::now();
    Arc::new(RuntimeConnector::new(
        |portal: Portal| {
            async move {
                let address = format!("{}:{}", portal.host, portal.port);
                let stream = TcpStream::connect(address).await?;
                // Commands are small and wait for nothing.
                stream.set_nodelay(true)?;
                Ok(stream.compat())
            }
            .boxed()
        },
        move || start.elapsed(),
        |time| tokio::time::sleep(time).boxed(),
    ))
}

//! A target on the network, ways to run an initiator, and commands for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use block_core::io::{Engine, exec};
use block_core::{Alignment, IoBuf, IoVec, OwnedBuf};
use block_iscsi::initiator::{Initiator, Pump, random_isid};
use block_iscsi::keys::{DigestKind, Offer};
use block_iscsi::login::{Authentication, SessionTarget};
use block_iscsi::nexus::{Command, Completion, Data, Nexus, TaskError};
use block_iscsi::scsi::cdb::{Caching, Cdb};
use block_iscsi::scsi::luns::Lun;
use block_iscsi::scsi::sense::Status;
use block_iscsi::session::{Patience, SessionConfig, SessionError};
use block_iscsi::transport::futures_io::RuntimeConnector;
use block_iscsi::transport::tcp::TcpConnector;
use block_iscsi::transport::{Connector, Portal};
use block_iscsi::url::Host;
use block_testkit::iscsi::serve::Server;
use block_testkit::iscsi::target::{Target, TargetConfig};
use block_testkit::iscsi::{Device, LunConfig, SenseFormat};
use futures::future::BoxFuture;

pub(crate) const NAME: &str = "iqn.2026-01.org.example:disk";
pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 1 << 17;

pub(crate) fn target() -> Target {
    let mut device = Device::new(SenseFormat::Fixed);
    device.add(0, LunConfig::thin(512, BLOCKS)).unwrap();
    Target::new(TargetConfig::new(NAME), device)
}

pub(crate) fn server() -> Server {
    Server::start(target()).unwrap()
}

pub(crate) fn config(server: &Server) -> SessionConfig {
    let address = server.addr();
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("{address}") };
    SessionConfig {
        portal: Portal { host: Host::V4(ip), port: address.port() },
        initiator: "iqn.2026-01.org.example:host".to_owned(),
        initiator_alias: None,
        target: SessionTarget::Normal(NAME.to_owned()),
        authentication: Authentication::None,
        offer: Offer {
            initial_r2t: false,
            max_recv_data_segment_len: 1 << 18,
            max_burst_len: 1 << 20,
            first_burst_len: 1 << 16,
            max_outstanding_r2t: 4,
            ..Offer::default()
        },
        isid: random_isid().unwrap(),
        depth: 64,
        patience: Patience::default(),
    }
}

/// The same with digests of everything.
pub(crate) fn with_digests(mut config: SessionConfig) -> SessionConfig {
    config.offer.header_digest = vec![DigestKind::Crc32c];
    config.offer.data_digest = vec![DigestKind::Crc32c];
    config
}

/// Runs a future to its end, and what it spawns with it.
pub(crate) type Run = fn(BoxFuture<'static, ()>);

/// Where a session runs.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) connector: Arc<dyn Connector>,
    /// Takes the pump; `None` where any executor will do.
    spawn: Option<fn(Pump)>,
}

impl Place {
    pub(crate) async fn connect(&self, config: SessionConfig) -> Result<Initiator, SessionError> {
        let connector = Arc::clone(&self.connector);
        let Some(spawn) = self.spawn else { return Initiator::connect(config, connector).await };
        let (initiator, pump) = Initiator::new(config, connector)?;
        spawn(pump);
        initiator.opened().await?;
        Ok(initiator)
    }
}

/// Executors, each with the places that there are.
fn places() -> Vec<(&'static str, Run, Vec<Place>)> {
    let tcp =
        |engine| Place { connector: Arc::new(TcpConnector::with_engine(engine)), spawn: None };
    let both = || vec![tcp(Engine::IoUring), tcp(Engine::Threads)];
    let with = |connector: Arc<dyn Connector>, spawn: fn(Pump)| {
        let own = Place { connector: Arc::clone(&connector), spawn: Some(spawn) };
        both().into_iter().chain([own]).collect()
    };
    vec![
        ("block_on", exec::block_on, both()),
        ("futures", futures::executor::block_on, both()),
        (
            "smol",
            |future| smol::block_on(smol::spawn(future)),
            with(smol_connector(), |pump| smol::spawn(pump).detach()),
        ),
        (
            "tokio",
            |future| {
                let mut builder = tokio::runtime::Builder::new_multi_thread();
                let runtime = builder.worker_threads(2).enable_all().build().unwrap();
                runtime.block_on(async { tokio::spawn(future).await.unwrap() });
            },
            with(tokio_connector(), |pump| drop(tokio::spawn(pump))),
        ),
    ]
}

/// Runs a test everywhere, each time with a new target, to which no connection may be left then.
pub(crate) fn everywhere<F>(test: impl Fn(Arc<Server>, Place) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for (name, run, places) in places() {
        for (i, place) in places.into_iter().enumerate() {
            println!("{name}, place {i}");
            let server = Arc::new(server());
            run(Box::pin(test(Arc::clone(&server), place)));
            if name != "tokio" {
                // There the rest ends with the runtime.
                eventually("no connection is left", || server.connections() == 0);
            }
        }
    }
}

pub(crate) fn tcp() -> Arc<dyn Connector> {
    Arc::new(TcpConnector::new())
}

fn clock() -> impl Fn() -> Duration + Clone + Send + Sync + 'static {
    let start = Instant::now();
    move || start.elapsed()
}

fn address(portal: &Portal) -> String {
    format!("{}:{}", portal.host, portal.port)
}

pub(crate) fn smol_connector() -> Arc<dyn Connector> {
    Arc::new(RuntimeConnector::new(
        |portal: Portal| -> BoxFuture<'static, io::Result<smol::net::TcpStream>> {
            Box::pin(async move { smol::net::TcpStream::connect(address(&portal)).await })
        },
        clock(),
        |time| -> BoxFuture<'static, ()> {
            Box::pin(async move {
                smol::Timer::after(time).await;
            })
        },
    ))
}

pub(crate) fn tokio_connector() -> Arc<dyn Connector> {
    Arc::new(RuntimeConnector::new(
        |portal: Portal| -> BoxFuture<'static, io::Result<OfTokio>> {
            Box::pin(
                async move { tokio::net::TcpStream::connect(address(&portal)).await.map(OfTokio) },
            )
        },
        clock(),
        |time| -> BoxFuture<'static, ()> { Box::pin(tokio::time::sleep(time)) },
    ))
}

/// A stream of tokio's with the traits of the crate `futures`.
pub(crate) struct OfTokio(tokio::net::TcpStream);

impl futures::AsyncRead for OfTokio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut bytes = tokio::io::ReadBuf::new(bytes);
        let polled = tokio::io::AsyncRead::poll_read(Pin::new(&mut self.0), cx, &mut bytes);
        polled.map_ok(|()| bytes.filled().len())
    }
}

impl futures::AsyncWrite for OfTokio {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.0), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}

/// A command; a unit attention is heard and the command sent again, as drivers do.
pub(crate) async fn execute(
    nexus: &Initiator,
    cdb: Cdb,
    data: Data,
) -> Result<Completion, TaskError> {
    loop {
        let lun = Lun::from_number(0).unwrap();
        let (data, replay) = (data.clone(), cdb.replay());
        let completion =
            nexus.execute(Command { lun, cdb: cdb.encode(), data, replay, session: None }).await?;
        // Fixed format, unit attention.
        if completion.status != Status::CheckCondition || completion.sense[2] & 0xf != 6 {
            return Ok(completion);
        }
    }
}

pub(crate) async fn read(nexus: &Initiator, lba: u64, len: usize) -> Result<Vec<u8>, TaskError> {
    let buf = IoBuf::zeroed(len, Alignment::PAGE).unwrap();
    let blocks = u32::try_from(len / BLOCK).unwrap();
    let data = Data::In(IoVec::from(buf.clone()));
    let completion = execute(nexus, Cdb::read(lba, blocks, Caching::DEFAULT), data).await?;
    assert_eq!((completion.status, completion.received), (Status::Good, len));
    Ok(buf.to_vec())
}

pub(crate) async fn write(nexus: &Initiator, lba: u64, bytes: &[u8]) -> Result<(), TaskError> {
    let buf = OwnedBuf::copy_of(bytes, Alignment::PAGE).unwrap().into_shared();
    let (cdb, data) = write_command(lba, buf);
    let completion = execute(nexus, cdb, data).await?;
    assert_eq!(completion.status, Status::Good);
    Ok(())
}

pub(crate) fn write_command(lba: u64, buf: IoBuf) -> (Cdb, Data) {
    let blocks = u32::try_from(buf.len() / BLOCK).unwrap();
    (Cdb::write(lba, blocks, Caching::DEFAULT), Data::Out(IoVec::from(buf)))
}

/// Waits for something that another thread does; not for ever.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

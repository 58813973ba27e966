//! A target on the network: it answers, is stopped and started again with the same device, cuts
//! connections, and sends what nobody asked for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use block_iscsi::login::{Login, LoginConfig, Progress};
use block_iscsi::pdu::bhs::{BHS_LEN, Bhs};
use block_iscsi::pdu::fields::{DataLen, Delivery, RequestSerials};
use block_iscsi::pdu::scsi::{Cdb, Direction, ScsiCommand, TaskAttribute};
use block_iscsi::pdu::{Request, Response};
use block_iscsi::serial::Serial;
use block_testkit::iscsi::serve::{Mischief, Server};

use crate::wire::*;

struct Client {
    stream: TcpStream,
    cmd_sn: Serial,
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, cmd_sn: Serial::new(0) }
    }

    fn up(addr: SocketAddr, config: LoginConfig) -> Self {
        let mut client = Self::connect(addr);
        let mut login = Login::new(config).unwrap();
        loop {
            let request = login.next_request().unwrap().unwrap();
            client.stream.write_all(&request).unwrap();
            let (head, data) = client.receive().unwrap();
            if let Progress::Done(parameters) = login.handle(&head, &data).unwrap() {
                client.cmd_sn = parameters.cmd_sn;
                return client;
            }
        }
    }

    fn receive(&mut self) -> std::io::Result<([u8; BHS_LEN], Vec<u8>)> {
        let mut head = [0; BHS_LEN];
        self.stream.read_exact(&mut head)?;
        let bhs = Bhs::parse(&head).unwrap();
        let mut data = vec![0; usize::try_from(bhs.padded_data_len()).unwrap()];
        self.stream.read_exact(&mut data)?;
        data.truncate(usize::try_from(bhs.data_len()).unwrap());
        Ok((head, data))
    }

    fn command(&mut self, cdb: &[u8], direction: Direction, data: &[u8]) -> Response {
        let command = ScsiCommand {
            delivery: Delivery::Ordered,
            direction,
            attribute: TaskAttribute::Simple,
            lun: [0; 8],
            task_tag: 1,
            expected_len: 512,
            serials: RequestSerials { cmd_sn: self.cmd_sn, exp_stat_sn: Serial::new(0) },
            cdb: Cdb::new(cdb).unwrap(),
            data_len: DataLen::of(data).unwrap(),
        };
        self.cmd_sn = self.cmd_sn.next();
        let mut bytes = Vec::new();
        Request::from(command).append_to(data, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
        Response::parse(&self.receive().unwrap().0).unwrap()
    }

    /// The connection ends.
    fn ends(&mut self) {
        assert!(self.receive().is_err());
    }
}

#[test]
fn a_target_is_stopped_and_goes_on_elsewhere_with_the_same_device() {
    let server = Server::start(target(|_| {})).unwrap();
    let addr = server.addr();
    let mut client = Client::up(addr, login());
    // The unit attention of the new session.
    client.command(&[0; 6], READ, &[]);
    client.command(&range(0x2a, 7, 1), WRITE, &[3; 512]);
    assert_eq!(server.with(|target| target.device().counters().of(0x2a)), 1);
    assert_eq!(server.connections(), 1);
    let target = server.stop();
    client.ends();
    assert!(TcpStream::connect(addr).is_err(), "nobody listens");
    assert!(target.links().is_empty());
    let server = Server::start_at(addr, target, Mischief::default()).unwrap();
    let mut client = Client::up(server.addr(), login());
    client.command(&[0; 6], READ, &[]);
    let cdb = range(0x28, 7, 1);
    assert!(matches!(client.command(&cdb, READ, &[]), Response::DataIn(_)));
    server.with(|target| assert!(target.device().is_mapped(0, 7)));
}

#[test]
fn connections_are_cut_and_others_take_their_place() {
    let server = Server::start(target(|_| {})).unwrap();
    let mut first = Client::up(server.addr(), login());
    server.cut();
    first.ends();
    // The same port again: the older connection ends.
    let mut second = Client::up(server.addr(), login());
    let mut third = Client::up(server.addr(), login());
    second.ends();
    let link = server.with(|target| *target.links().last().unwrap());
    server.with(|target| target.ping(link));
    let (head, _) = third.receive().unwrap();
    assert!(matches!(Response::parse(&head), Ok(Response::NopIn(_))));
    drop(server);
    third.ends();
}

#[test]
fn mischief_cuts_connections_by_their_pdus() {
    let mischief = Mischief { cut_after: Some(4) };
    let server = Server::start_at("127.0.0.1:0", target(|_| {}), mischief).unwrap();
    // Two requests of the login.
    let mut client = Client::up(server.addr(), login());
    client.command(&[0; 6], READ, &[]);
    client.command(&[0; 6], READ, &[]);
    client.ends();
}

#[test]
fn connections_that_were_closed_are_gone_before_the_next_one_is_served() {
    let server = Server::start(target(|_| {})).unwrap();
    for _ in 0..20 {
        let closed: Vec<_> = (0..32).map(|_| Client::connect(server.addr())).collect();
        // Those of the loop before end with its client, which is seen in time, too.
        while server.connections() < closed.len() {
            std::thread::yield_now();
        }
        drop(closed);
        let _client = Client::up(server.addr(), login());
        assert_eq!(server.connections(), 1);
    }
}

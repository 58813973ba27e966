//! Which type a header is: [`Request`] from initiators, [`Response`] from targets.

use super::async_event::AsyncMessage;
use super::bhs::{Bhs, Opcode};
use super::data::{DataIn, DataOut, ReadyToTransfer};
use super::fields::DataLen;
use super::login::{LoginRequest, LoginResponse};
use super::logout::{LogoutRequest, LogoutResponse};
use super::nop::{NopIn, NopOut};
use super::reject::Reject;
use super::scsi::{ScsiCommand, ScsiResponse, split_ahs};
use super::snack::SnackRequest;
use super::task_mgmt::{TaskManagementRequest, TaskManagementResponse};
use super::text::{TextRequest, TextResponse};
use super::{Pdu, PduError};

macro_rules! pdus {
    ($(#[$doc:meta])* $name:ident { $($(#[$item_doc:meta])* $item:ident($kind:ty),)* }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$item_doc])* $item($kind),)*
        }

        $(
            impl From<$kind> for $name {
                fn from(pdu: $kind) -> Self {
                    Self::$item(pdu)
                }
            }
        )*

        impl $name {
            /// The basic header segment.
            pub fn to_bhs(&self) -> Bhs {
                match self {
                    $(Self::$item(pdu) => pdu.to_bhs(),)*
                }
            }
        }
    };
}

pdus! {
    /// What an initiator sends.
    Request {
        /// NOP-Out.
        NopOut(NopOut),
        /// SCSI Command.
        ScsiCommand(ScsiCommand),
        /// Task Management Function Request.
        TaskManagement(TaskManagementRequest),
        /// Login Request.
        Login(LoginRequest),
        /// Text Request.
        Text(TextRequest),
        /// SCSI Data-Out.
        DataOut(DataOut),
        /// Logout Request.
        Logout(LogoutRequest),
        /// SNACK Request.
        Snack(SnackRequest),
    }
}

pdus! {
    /// What a target sends.
    Response {
        /// NOP-In.
        NopIn(NopIn),
        /// SCSI Response.
        ScsiResponse(ScsiResponse),
        /// Task Management Function Response.
        TaskManagement(TaskManagementResponse),
        /// Login Response.
        Login(LoginResponse),
        /// Text Response.
        Text(TextResponse),
        /// SCSI Data-In.
        DataIn(DataIn),
        /// Logout Response.
        Logout(LogoutResponse),
        /// Ready To Transfer.
        ReadyToTransfer(ReadyToTransfer),
        /// Asynchronous Message.
        AsyncMessage(AsyncMessage),
        /// Reject.
        Reject(Reject),
    }
}

impl Request {
    /// Reads the header, with its additional segments, that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, PduError> {
        let (bhs, ahs) = split_ahs(bytes)?;
        Self::from_bhs(&bhs, ahs)
    }

    /// Takes the fields of a header and its additional segments. What targets send is refused.
    pub fn from_bhs(bhs: &Bhs, ahs: &[u8]) -> Result<Self, PduError> {
        Ok(match bhs.opcode() {
            Opcode::NopOut => NopOut::from_bhs(bhs)?.into(),
            Opcode::ScsiCommand => ScsiCommand::from_bhs(bhs, ahs)?.into(),
            Opcode::TaskManagementRequest => TaskManagementRequest::from_bhs(bhs)?.into(),
            Opcode::LoginRequest => LoginRequest::from_bhs(bhs)?.into(),
            Opcode::TextRequest => TextRequest::from_bhs(bhs)?.into(),
            Opcode::DataOut => DataOut::from_bhs(bhs)?.into(),
            Opcode::LogoutRequest => LogoutRequest::from_bhs(bhs)?.into(),
            Opcode::SnackRequest => SnackRequest::from_bhs(bhs)?.into(),
            other => return Err(PduError::Unexpected { code: other.code() }),
        })
    }

    /// Appends a whole PDU without digests to `out`: the header, its additional segments, `data`
    /// and its padding. `data` must be as long as the header says.
    pub fn append_to(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), PduError> {
        let bhs = self.to_bhs();
        let padding = check_data(&bhs, data)?.padding();
        match self {
            Self::ScsiCommand(command) => command.append_to(out),
            _ => out.extend_from_slice(&bhs.to_bytes()),
        }
        out.extend_from_slice(data);
        out.extend_from_slice(padding);
        Ok(())
    }
}

impl Response {
    /// Reads the header that `bytes` start with.
    pub fn parse(bytes: &[u8]) -> Result<Self, PduError> {
        Self::from_bhs(&Bhs::parse(bytes)?)
    }

    /// Takes the fields of a header. What initiators send, and additional segments, are refused.
    pub fn from_bhs(bhs: &Bhs) -> Result<Self, PduError> {
        Ok(match bhs.opcode() {
            Opcode::NopIn => NopIn::from_bhs(bhs)?.into(),
            Opcode::ScsiResponse => ScsiResponse::from_bhs(bhs)?.into(),
            Opcode::TaskManagementResponse => TaskManagementResponse::from_bhs(bhs)?.into(),
            Opcode::LoginResponse => LoginResponse::from_bhs(bhs)?.into(),
            Opcode::TextResponse => TextResponse::from_bhs(bhs)?.into(),
            Opcode::DataIn => DataIn::from_bhs(bhs)?.into(),
            Opcode::LogoutResponse => LogoutResponse::from_bhs(bhs)?.into(),
            Opcode::ReadyToTransfer => ReadyToTransfer::from_bhs(bhs)?.into(),
            Opcode::AsyncMessage => AsyncMessage::from_bhs(bhs)?.into(),
            Opcode::Reject => Reject::from_bhs(bhs)?.into(),
            other => return Err(PduError::Unexpected { code: other.code() }),
        })
    }

    /// Appends a whole PDU without digests to `out`: the header, `data` and its padding. `data`
    /// must be as long as the header says.
    pub fn append_to(&self, data: &[u8], out: &mut Vec<u8>) -> Result<(), PduError> {
        let bhs = self.to_bhs();
        let padding = check_data(&bhs, data)?.padding();
        out.extend_from_slice(&bhs.to_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(padding);
        Ok(())
    }
}

fn check_data(bhs: &Bhs, data: &[u8]) -> Result<DataLen, PduError> {
    let len = DataLen::of(data)?;
    if len.bytes() != bhs.data_len() {
        return Err(PduError::field("DataSegmentLength", bhs.data_len()));
    }
    Ok(len)
}

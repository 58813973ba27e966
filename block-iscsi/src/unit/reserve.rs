//! Reservations: who else may use the unit.

use crate::nexus::Data;
use crate::scsi::AnswerError;
use crate::scsi::cdb::Cdb;
use crate::scsi::reservation::{
    Capabilities, Keys, Reservation, ReserveIn, ReserveList, ReserveOut,
};

use super::{Unit, UnitError};

impl Unit {
    /// RESERVE (6): the unit for this initiator alone, until RELEASE (6), a reset, or the session's
    /// end.
    pub async fn reserve(&self) -> Result<(), UnitError> {
        self.execute(Cdb::Reserve6, Data::None).await.map(|_| ())
    }

    /// RELEASE (6).
    pub async fn release(&self) -> Result<(), UnitError> {
        self.execute(Cdb::Release6, Data::None).await.map(|_| ())
    }

    /// PERSISTENT RESERVE OUT.
    pub async fn persistent_reserve(
        &self,
        action: ReserveOut,
        list: &ReserveList,
    ) -> Result<(), UnitError> {
        let cdb = Cdb::PersistentReserveOut { action };
        self.execute_with(cdb, &list.encode()).await.map(|_| ())
    }

    /// PERSISTENT RESERVE IN, READ KEYS.
    pub async fn persistent_keys(&self) -> Result<Keys, UnitError> {
        self.reserve_in(ReserveIn::Keys, Keys::parse).await
    }

    /// PERSISTENT RESERVE IN, READ RESERVATION.
    pub async fn persistent_reservation(&self) -> Result<Reservation, UnitError> {
        self.reserve_in(ReserveIn::Reservation, Reservation::parse).await
    }

    /// PERSISTENT RESERVE IN, REPORT CAPABILITIES.
    pub async fn persistent_capabilities(&self) -> Result<Capabilities, UnitError> {
        self.reserve_in(ReserveIn::Capabilities, Capabilities::parse).await
    }

    async fn reserve_in<T>(
        &self,
        action: ReserveIn,
        parse: impl Fn(&[u8]) -> Result<T, AnswerError> + Send + Sync,
    ) -> Result<T, UnitError> {
        let cdb = move |len| {
            let allocation = u16::try_from(len).unwrap_or(u16::MAX);
            Cdb::PersistentReserveIn { action, allocation }
        };
        self.whole(256, usize::from(u16::MAX), cdb, parse).await
    }
}

//! The driver by its name and options, for registries.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::error::OpenError;
use block_core::options::Options;
use block_core::registry::{DriverFactory, OpenContext};

use crate::config::IscsiConfig;
use crate::driver::{IscsiDriver, NAME, UnitOptions};
use crate::initiator::{Initiator, random_isid};
use crate::session::SessionConfig;
use crate::transport::Connector;
use crate::unit::{ConnectorSleep, Retries};

/// Opens units of targets: the driver `iscsi`, and names that start with `iscsi:`.
///
/// The options are those of [`crate::config`]. The pump of each session goes to the executor of the
/// thread that opens ([`block_core::io::exec::spawn_detached`]).
#[derive(Clone)]
pub struct IscsiFactory {
    connector: Arc<dyn Connector>,
}

impl IscsiFactory {
    /// Connects by `connector`.
    pub fn new(connector: Arc<dyn Connector>) -> Self {
        Self { connector }
    }

    async fn connect(&self, config: SessionConfig) -> Result<Initiator, OpenError> {
        let connected = Initiator::connect(config, Arc::clone(&self.connector)).await;
        connected.map_err(|error| OpenError::Text {
            format: NAME,
            what: "login",
            problem: error.to_string(),
        })
    }
}

#[async_trait]
impl DriverFactory for IscsiFactory {
    fn name(&self) -> &'static str {
        NAME
    }

    fn schemes(&self) -> &'static [&'static str] {
        &[NAME]
    }

    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        let isid = random_isid()
            .map_err(|error| OpenError::Request { what: "random numbers", error: error.into() })?;
        let env = |name: &str| std::env::var(name).ok();
        let config = IscsiConfig::from_options(options, &env, isid)?;
        let initiator = self.connect(config.session).await?;
        let sleep = Arc::new(ConnectorSleep::new(Arc::clone(&self.connector)));
        let options = UnitOptions {
            lun: config.lun,
            flags: context.flags,
            filename: config.name,
            retries: Retries::default(),
        };
        let driver = IscsiDriver::open(Arc::new(initiator), sleep, options).await?;
        Ok(driver)
    }
}

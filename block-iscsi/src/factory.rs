//! The driver by its name and options, for registries.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::driver::BlockDriver;
use block_core::error::{OpenError, Problem};
use block_core::options::Options;
use block_core::registry::{CreateOption, DriverFactory, OpenContext};

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

    async fn open_unit(
        &self,
        options: Options,
        context: &OpenContext,
    ) -> Result<Arc<IscsiDriver>, OpenError> {
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
        IscsiDriver::open(Arc::new(initiator), sleep, options).await
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
        let driver = self.open_unit(options, &context).await?;
        Ok(driver)
    }

    fn create_options(&self) -> &'static [CreateOption] {
        &[CreateOption { name: "size", value: "<size>", help: "Length of the disk", default: None }]
    }

    /// Makes nothing: a unit must be there, writable and long enough. It keeps what it holds.
    async fn create(
        &self,
        mut options: Options,
        mut context: OpenContext,
    ) -> Result<(), OpenError> {
        let missing = || OpenError::Option { option: "size".to_owned(), problem: Problem::Missing };
        let wanted = options.take_size("size")?.ok_or_else(missing)?;
        context.flags.writable = true;
        let driver = self.open_unit(options, &context).await?;
        let len = driver.len();
        let closed = driver.close().await;
        closed.map_err(|error| OpenError::Request { what: "closing the unit", error })?;
        if wanted > len {
            let problem = Problem::Above(len);
            let value = wanted.to_string();
            return Err(OpenError::OptionValue { option: "size", value, problem });
        }
        Ok(())
    }
}

//! How the registry makes drivers of this format.

use std::sync::Arc;

use async_trait::async_trait;
use block_core::ability::Measurement;
use block_core::driver::BlockDriver;
use block_core::registry::{CreateOption, DriverFactory, OpenContext};
use block_core::{Node, OpenError, Options};

use crate::create;
use crate::error::FORMAT;
use crate::measure;
use crate::open;
use crate::probe::probe;

/// Opens and makes VMDK images: the format `vmdk`.
///
/// Options: `file.*`, `extents.N.*`, `backing.*` (`backing=` for none), and
/// `allow-outside-extents=on` for extents that are not in the descriptor's directory.
#[derive(Copy, Clone, Debug, Default)]
pub struct VmdkFactory;

#[async_trait]
impl DriverFactory for VmdkFactory {
    fn name(&self) -> &'static str {
        FORMAT
    }

    fn probe(&self, head: &[u8], _: &str) -> u8 {
        if probe(head).is_some() { 100 } else { 0 }
    }

    async fn open(
        &self,
        options: Options,
        context: OpenContext,
    ) -> Result<Arc<dyn BlockDriver>, OpenError> {
        open::open(options, context).await
    }

    fn create_options(&self) -> &'static [CreateOption] {
        create::OPTIONS
    }

    async fn create(&self, options: Options, context: OpenContext) -> Result<(), OpenError> {
        create::create(options, context).await
    }

    async fn measure(
        &self,
        options: Options,
        source: Option<Node>,
    ) -> Result<Measurement, OpenError> {
        measure::measure(options, source).await
    }
}

mod kit;
use block_core::graph;
use block_testkit::disk::mem::{MemConfig, all_capabilities};
use block_testkit::disk::record::Record;
use block_testkit::disk::tap::Tapped;
use block_testkit::exec::Exec;
#[test]
fn scratch() {
    for seed in 0..40u64 {
        let setup = kit::setups().into_iter().find(|s| s.name == "4k shared").unwrap();
        let record = Record::new();
        let rec = record.clone();
        let where_ = std::sync::Arc::new(parking_lot::Mutex::new("open"));
        let w = where_.clone();
        let r = Exec::try_run(seed, move |_| async move {
            let made = setup.make();
            let mut config = MemConfig::new(made.file.len() as u64);
            config.capabilities =
                block_core::Capabilities { grows_on_write: true, ..all_capabilities() };
            let disk = config.build();
            disk.load(0, &made.file);
            let tapped = Tapped::new(disk, rec);
            let world = kit::World::new(&setup, tapped, None);
            let node = world.open().await.unwrap();
            *w.lock() = "read";
            for _ in 0..3 {
                let len = node.len() as usize;
                let buf = block_core::IoBuf::zeroed(len, block_core::Alignment::PAGE).unwrap();
                node.read(block_core::ByteRange::up_to(len as u64), buf.into()).await.unwrap();
            }
            *w.lock() = "close";
            graph::close(&node).await.unwrap();
            *w.lock() = "done";
        });
        println!(
            "seed {seed} {:?} {} {}",
            r.map_err(|e| e.to_string()),
            where_.lock(),
            record.take_text()
        );
    }
}

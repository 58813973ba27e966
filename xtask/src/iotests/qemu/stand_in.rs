//! Programs under the names that the scripts call: ours or the installed ones, and a stand-in for the
//! emulator, which only says which formats there are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::failure::{Failure, Result};

/// What the scripts ask the emulator; anything else fails.
const EMULATOR: &str = "#!/bin/sh
case \"$*\" in
*'-drive format=help'*) echo 'Supported formats: FORMATS' ;;
*'-device help'*) ;;
*) echo 'no emulator here' >&2; exit 1 ;;
esac
";

/// A tool of the scripts that neither side has.
const ABSENT: &str = "#!/bin/sh
echo \"${0##*/}: not here\" >&2
exit 1
";

/// Our programs.
pub(super) fn ours(directory: &Path, img: &Path, io: &Path) -> Result<()> {
    emulator(
        directory,
        "blkdebug blkverify file host_device iscsi null-aio null-co qcow2 raw vmdk",
    )?;
    for (name, program) in [("qemu-img", img), ("qemu-io", io)] {
        write(
            directory,
            name,
            &format!("#!/bin/bash\nexec -a {name} {} \"$@\"\n", program.display()),
        )?;
    }
    write(directory, "qemu-nbd", ABSENT)
}

/// The installed programs.
pub(super) fn installed(directory: &Path) -> Result<()> {
    emulator(
        directory,
        "blkdebug blkverify bochs cloop compress copy-on-read dmg file host_device luks nbd null-aio \
         null-co parallels qcow qcow2 qed quorum raw throttle vdi vhdx vmdk vpc vvfat",
    )?;
    for name in ["qemu-img", "qemu-io", "qemu-nbd"] {
        write(directory, name, &format!("#!/bin/bash\nexec {name} \"$@\"\n"))?;
    }
    Ok(())
}

fn emulator(directory: &Path, formats: &str) -> Result<()> {
    fs::create_dir_all(directory)
        .map_err(Failure::io(format!("create {}", directory.display())))?;
    write(directory, "qemu", &EMULATOR.replace("FORMATS", formats))?;
    write(directory, "qemu-storage-daemon", ABSENT)
}

fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let path = directory.join(name);
    let what = format!("write {}", path.display());
    fs::write(&path, text).map_err(Failure::io(what.clone()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(Failure::io(what))
}

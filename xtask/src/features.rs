//! The features of the crates, alone and together.
//!
//! Every crate is linted with none of its features, with each alone and with all. Where a feature changes what
//! users see, the tests about it run in the combinations that say something; with all features they run among
//! the others. The features are those of the manifests: a new one needs no entry here.

use crate::failure::Result;
use crate::run;

/// Tests that run in a combination: crate, features, and the file of the tests.
const TESTS: &[(&str, &str, &str)] = &[
    ("block-qcow2", "", "features"),
    ("block-qcow2", "zlib", "features"),
    ("block-qcow2", "zstd", "features"),
];

/// Lints and tests the combinations.
pub(crate) fn run() -> Result<()> {
    for (package, features) in with_features()? {
        for combination in combinations(&features) {
            println!("{package}: {}", if combination.is_empty() { "none" } else { &combination });
            let mut clippy = run::cargo();
            clippy.args(["clippy", "--quiet", "--locked", "--package", &package]);
            clippy.args(["--no-default-features", "--features", &combination]);
            run::succeed(clippy.args(["--lib", "--", "-D", "warnings"]))?;
        }
    }
    for (package, features, file) in TESTS {
        let mut test = run::cargo();
        test.args(["test", "--quiet", "--locked", "--package", package]);
        // For a few small tests it does not pay to optimise.
        for library in ["block-core", "block-iscsi", "block-qcow2", "block-testkit"] {
            test.args(["--config", &format!("profile.dev.package.{library}.opt-level=0")]);
        }
        test.args(["--no-default-features", "--features", features, "--test", file]);
        println!("{}", run::line(&test));
        run::succeed(&mut test)?;
    }
    Ok(())
}

/// The crates that have features, and their features.
fn with_features() -> Result<Vec<(String, Vec<String>)>> {
    let metadata = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let metadata = run::json(run::cargo().args(metadata))?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let packages = packages.filter_map(|package| {
        let names = package["features"].as_object()?.keys();
        let features: Vec<String> = names.filter(|name| *name != "default").cloned().collect();
        Some((package["name"].as_str()?.to_owned(), features))
    });
    Ok(packages.filter(|(_, features)| !features.is_empty()).collect())
}

/// None, each alone, and all, as cargo takes them.
fn combinations(features: &[String]) -> Vec<String> {
    let mut all = vec![String::new()];
    all.extend(features.iter().cloned());
    if features.len() > 1 {
        all.push(features.join(","));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_tried_alone_and_together() {
        let features = ["a", "b"].map(str::to_owned);
        assert_eq!(combinations(&features), ["", "a", "b", "a,b"]);
        assert_eq!(combinations(&features[..1]), ["", "a"]);
    }

    #[test]
    fn the_features_that_are_documented_are_found() {
        let found = with_features().unwrap();
        let features = |name: &str| {
            let package = found.iter().find(|(package, _)| package == name);
            package.map(|(_, features)| features.join(" ")).unwrap_or_default()
        };
        assert_eq!(features("block-core"), "io-uring net");
        assert_eq!(features("block-qcow2"), "io-uring zlib zstd");
        assert_eq!(features("block-vmdk"), "io-uring");
        assert_eq!(features("block-iscsi"), "io-uring tcp");
        for (package, features) in found {
            let readme = run::root().join(&package).join("README.md");
            let readme = std::fs::read_to_string(readme).unwrap();
            for feature in features {
                assert!(readme.contains(&format!("\n| `{feature}` |")), "{package}: {feature}");
            }
        }
    }
}

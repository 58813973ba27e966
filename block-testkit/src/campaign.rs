//! Many random games from seeds: each can be played again alone, and one that fails is made small first.
//!
//! A game is a list of operations and the seed by which they are played. [`Campaign::run`] plays games
//! one after the other; of the first that fails it takes operations away for as long as it goes on
//! failing, and panics with what is left.
//!
//! `BLOCK_SEED` plays the game of that seed only, `BLOCK_CASES` says how many games there are, and
//! `BLOCK_FIRST` from which seed on. A campaign that goes on for a time ([`Campaign::soak`]) takes the
//! seconds from `BLOCK_SECONDS`. The file that `BLOCK_NOTE` names holds the seed of the game that is being
//! played, for whoever finds the process dead or waits for it in vain.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::op::Op;

/// How many games are played, and which.
#[derive(Clone, Debug)]
pub struct Campaign {
    name: &'static str,
    seeds: std::ops::Range<u64>,
    /// What is enough; `u64::MAX` where only the seeds count.
    target: u64,
    /// How long games are begun; `None` where only seeds and target count.
    time: Option<Duration>,
    /// The file that gets the seed of each game before it is played.
    note: Option<PathBuf>,
}

/// A game.
#[derive(Clone, Debug)]
pub struct Game<S> {
    /// What it is played on.
    pub setup: S,
    /// What is played.
    pub ops: Vec<Op>,
    /// How many operations run at once.
    pub depth: usize,
    /// Chooses everything that happens while it is played.
    pub seed: u64,
}

impl Campaign {
    /// `cases` games, unless the environment says otherwise. `name` is shown where one fails.
    pub fn new(name: &'static str, cases: u64) -> Self {
        let first = variable("BLOCK_FIRST").unwrap_or(0);
        let cases = variable("BLOCK_CASES").unwrap_or(cases);
        let seeds = match variable("BLOCK_SEED") {
            Some(seed) => seed..seed.saturating_add(1),
            None => first..first.saturating_add(cases),
        };
        let note = std::env::var_os("BLOCK_NOTE").map(PathBuf::from);
        Self { name, seeds, target: u64::MAX, time: None, note }
    }

    /// Games until [`Campaign::run_until`] has counted `target` of what it counts.
    pub fn until(name: &'static str, target: u64) -> Self {
        Self { target, ..Self::new(name, u64::MAX) }
    }

    /// Games for as long as the environment says, or ten seconds: always new ones, one after the other.
    /// `cargo xtask soak` plays them.
    pub fn soak(name: &'static str) -> Self {
        let seconds = variable("BLOCK_SECONDS").unwrap_or(10);
        Self { time: Some(Duration::from_secs(seconds)), ..Self::new(name, u64::MAX) }
    }

    /// The seeds of the games.
    pub fn seeds(&self) -> std::ops::Range<u64> {
        self.seeds.clone()
    }

    /// Plays the games that `make` makes of the seeds.
    ///
    /// # Panics
    /// If `play` fails, by an error or a panic, with a game as small as could be found.
    pub fn run<S: Clone + std::fmt::Debug>(
        &self,
        make: impl Fn(u64) -> Game<S>,
        play: impl Fn(&Game<S>) -> Result<(), String>,
    ) {
        self.run_until(make, |game| play(game).map(|()| 0));
    }

    /// [`Campaign::run`] where each game says how much it was worth, until that is enough; prints what
    /// there was.
    ///
    /// # Panics
    /// As [`Campaign::run`].
    pub fn run_until<S: Clone + std::fmt::Debug>(
        &self,
        make: impl Fn(u64) -> Game<S>,
        play: impl Fn(&Game<S>) -> Result<u64, String>,
    ) {
        let (mut count, mut games) = (0u64, 0u64);
        let start = Instant::now();
        for seed in self.seeds() {
            if count >= self.target || self.time.is_some_and(|time| start.elapsed() >= time) {
                break;
            }
            self.note(seed);
            let game = make(seed);
            games += 1;
            let worth = Cell::new(0);
            let play = |game: &Game<S>| play(game).map(|w| worth.set(w));
            let played = attempt(&play, &game);
            count += worth.get();
            if let Err(why) = played {
                let (small, why) = shrink(&play, game, why);
                let Game { setup, ops, depth, seed: by } = small;
                let ops: Vec<_> = ops.iter().map(|op| format!("  {op:?}")).collect();
                panic!(
                    "{}: BLOCK_SEED={seed} fails on {setup:?}\ndepth {depth}, played by {by}:\n{}\n{why}",
                    self.name,
                    ops.join("\n")
                );
            }
        }
        println!("{}: {games} games from seed {} on, {count} in all", self.name, self.seeds.start);
    }
}

impl Campaign {
    /// Says which game is played.
    fn note(&self, seed: u64) {
        if let Some(path) = &self.note
            && let Err(error) = std::fs::write(path, seed.to_string())
        {
            panic!("{}: {}: {error}", self.name, path.display());
        }
    }
}

/// A value of `strategy` that depends on `seed` only.
///
/// # Panics
/// If the strategy gives none.
pub fn seeded<T: Strategy>(strategy: &T, seed: u64) -> T::Value {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    match strategy.new_tree(&mut runner) {
        Ok(tree) => tree.current(),
        Err(reason) => panic!("seed {seed}: {reason}"),
    }
}

/// Takes pieces of the game away, large ones first, for as long as it fails without them.
fn shrink<S: Clone>(
    play: &impl Fn(&Game<S>) -> Result<(), String>,
    mut game: Game<S>,
    mut why: String,
) -> (Game<S>, String) {
    let mut tries = MOST_TRIES;
    let mut len = game.ops.len().next_power_of_two();
    while len > 0 && tries > 0 {
        let mut at = 0;
        let before = game.ops.len();
        while at < game.ops.len() && tries > 0 {
            let mut small = game.clone();
            small.ops.drain(at..(at + len).min(small.ops.len()));
            match fails_by_any(play, small, &mut tries) {
                Some(found) => (game, why) = found,
                None => at += len,
            }
        }
        if len > 1 || game.ops.len() == before {
            len /= 2;
        }
    }
    for depth in 1..game.depth {
        let small = Game { depth, ..game.clone() };
        if let Some(found) = fails_by_any(play, small, &mut tries) {
            return found;
        }
    }
    (game, why)
}

/// Another list of operations has another order of events, so a few seeds are tried.
fn fails_by_any<S: Clone>(
    play: &impl Fn(&Game<S>) -> Result<(), String>,
    mut game: Game<S>,
    tries: &mut u32,
) -> Option<(Game<S>, String)> {
    for more in 0..4 {
        *tries = tries.saturating_sub(1);
        if let Err(why) = attempt(play, &game) {
            return Some((game, why));
        }
        game.seed = game.seed.wrapping_add(more + 1);
    }
    None
}

/// Plays a game; a panic is a failure whose message is not shown yet.
fn attempt<S>(
    play: &impl Fn(&Game<S>) -> Result<(), String>,
    game: &Game<S>,
) -> Result<(), String> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                LAST.with_borrow_mut(|last| *last = info.to_string());
            } else {
                before(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(|| play(game)));
    QUIET.set(before);
    result.unwrap_or_else(|_| Err(LAST.take()))
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Games that are played to make one small.
const MOST_TRIES: u32 = 2000;

static HOOK: Once = Once::new();

thread_local! {
    /// Whether panics of this thread are kept instead of shown.
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::OpSpace;

    #[test]
    fn a_game_that_fails_is_made_small_and_says_its_seed() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("note");
        let campaign = Campaign { note: Some(note.clone()), ..of_seeds(0..20) };
        let space = OpSpace::new(4096, &[512]);
        let make = |seed| Game { setup: (), ops: seeded(&space.ops(60), seed), depth: 4, seed };
        let flushes = |ops: &[Op]| ops.iter().filter(|op| matches!(op, Op::Flush)).count();
        let play = |game: &Game<()>| {
            assert!(flushes(&game.ops) < 2, "too many flushes");
            Ok(())
        };
        let failed = catch_unwind(|| {
            QUIET.set(true);
            campaign.run(make, play);
        });
        QUIET.set(false);
        let text = LAST.take();
        assert!(failed.is_err());
        let rest = text.split("depth 1").nth(1).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(rest.matches("  flush\n").count(), 2, "{text}");
        assert!(!rest.contains("write") && text.contains("BLOCK_SEED="), "{text}");
        assert!(text.contains("too many flushes"), "{text}");
        let noted = std::fs::read_to_string(note).unwrap();
        assert!(text.contains(&format!("BLOCK_SEED={noted} fails")), "{noted}: {text}");
    }

    #[test]
    fn a_campaign_for_a_time_ends_when_it_is_over() {
        let time = Some(Duration::from_millis(50));
        let campaign = Campaign { time, ..of_seeds(7..u64::MAX) };
        let (start, played) = (Instant::now(), RefCell::new(Vec::new()));
        campaign.run(
            |seed| Game { setup: (), ops: Vec::new(), depth: 1, seed },
            |game| {
                played.borrow_mut().push(game.seed);
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            },
        );
        assert!(start.elapsed() >= Duration::from_millis(50));
        let played = played.into_inner();
        assert!(!played.is_empty() && played.len() < 60, "{} games", played.len());
        assert!(played.iter().copied().eq(7..7 + played.len() as u64), "{played:?}");
    }

    fn of_seeds(seeds: std::ops::Range<u64>) -> Campaign {
        Campaign { name: "the test", seeds, target: u64::MAX, time: None, note: None }
    }

    #[test]
    fn a_seed_gives_one_value() {
        let strategy = OpSpace::new(4096, &[512]).ops(20);
        assert_eq!(seeded(&strategy, 3), seeded(&strategy, 3));
        assert_ne!(seeded(&strategy, 3), seeded(&strategy, 4));
    }
}

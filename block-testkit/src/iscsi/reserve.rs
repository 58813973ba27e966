//! Reservations: RESERVE (6) of SPC-2 and persistent ones (SPC-4), by nexus.
//!
//! Invariants: the holder of a persistent reservation is registered; without registrations there is
//! no persistent reservation; nobody holds both kinds.

use std::collections::BTreeMap;

use super::check::{Check, Refusal};
use super::command::{Cdb, Use};
use super::device::Nexus;

const PREEMPTED: (u8, u8) = (0x2a, 0x03);
const RELEASED: (u8, u8) = (0x2a, 0x04);
const REGISTRATION_PREEMPTED: (u8, u8) = (0x2a, 0x05);

/// TYPE of a persistent reservation.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
struct Type(u8);

impl Type {
    fn of(cdb: Cdb) -> Result<Self, Check> {
        let byte = cdb.u8(2);
        // SCOPE is the logical unit.
        if byte >> 4 != 0 {
            return Err(Check::field(2, 7));
        }
        match byte & 0x0f {
            1 | 3 | 5..=8 => Ok(Self(byte)),
            _ => Err(Check::field(2, 3)),
        }
    }

    fn all_registrants(self) -> bool {
        self.0 >= 7
    }

    /// Registrants may do everything.
    fn registrants(self) -> bool {
        self.0 >= 5
    }

    /// Others may not even read.
    fn exclusive_access(self) -> bool {
        matches!(self.0, 3 | 6 | 8)
    }
}

#[derive(Copy, Clone, Debug)]
struct Held {
    /// Who made it; of all registrants, everybody holds it.
    holder: Nexus,
    kind: Type,
}

/// Something that other nexuses must be told.
pub(super) type News = Vec<(Nexus, (u8, u8))>;

/// Who has reserved a unit.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    /// RESERVE (6).
    simple: Option<Nexus>,
    generation: u32,
    keys: BTreeMap<Nexus, u64>,
    held: Option<Held>,
}

/// The two keys of a parameter list.
#[derive(Copy, Clone)]
struct Keys {
    key: u64,
    action: u64,
}

impl Reservations {
    /// Refuses a command of `nexus` that somebody else's reservation excludes.
    pub(super) fn check(&self, nexus: Nexus, kind: Use) -> Result<(), Refusal> {
        if matches!(kind, Use::Free | Use::Own) {
            return Ok(());
        }
        let simple = self.simple.is_some_and(|holder| holder != nexus);
        let persistent = self.held.is_some_and(|held| {
            let allowed =
                self.holds(nexus) || (held.kind.registrants() && self.keys.contains_key(&nexus));
            let excluded = match kind {
                Use::Read => held.kind.exclusive_access(),
                Use::Write => true,
                _ => false,
            };
            excluded && !allowed
        });
        if simple || persistent { Err(Refusal::ReservationConflict) } else { Ok(()) }
    }

    fn holds(&self, nexus: Nexus) -> bool {
        self.held.is_some_and(|held| {
            held.holder == nexus || (held.kind.all_registrants() && self.keys.contains_key(&nexus))
        })
    }

    /// RESERVE (6). With registrations it is a conflict (SPC-2 5.5.1; CRH is 0).
    pub(super) fn reserve6(&mut self, nexus: Nexus) -> Result<(), Refusal> {
        if !self.keys.is_empty() || self.simple.is_some_and(|holder| holder != nexus) {
            return Err(Refusal::ReservationConflict);
        }
        self.simple = Some(nexus);
        Ok(())
    }

    /// RELEASE (6): of somebody else's reservation it is good and does nothing.
    pub(super) fn release6(&mut self, nexus: Nexus) -> Result<(), Refusal> {
        if !self.keys.is_empty() {
            return Err(Refusal::ReservationConflict);
        }
        self.forget_simple(nexus);
        Ok(())
    }

    /// The nexus is lost, or the unit was reset: what RESERVE (6) did is over.
    pub(super) fn forget_simple(&mut self, nexus: Nexus) {
        self.simple = self.simple.filter(|holder| *holder != nexus);
    }

    /// The unit was reset.
    pub(super) fn reset(&mut self) {
        self.simple = None;
    }

    /// PERSISTENT RESERVE IN (SPC-4) without READ FULL STATUS. With RESERVE (6) it is a conflict,
    /// whoever asks (SPC-2 5.5.1).
    pub(super) fn answer(&self, action: u8) -> Result<Vec<u8>, Refusal> {
        self.check_simple()?;
        if action == 2 {
            // TMV, no commands allowed that the standard leaves open; all types.
            return Ok(vec![0, 8, 0, 0x80, 0xea, 0x01, 0, 0]);
        }
        let mut list = Vec::new();
        match (action, self.held) {
            (0, _) => list.extend(self.keys.values().flat_map(|key| key.to_be_bytes())),
            (_, Some(held)) => {
                let key = self.keys.get(&held.holder).copied().unwrap_or(0);
                let key = if held.kind.all_registrants() { 0 } else { key };
                list.extend(key.to_be_bytes());
                list.extend([0, 0, 0, 0, 0, held.kind.0, 0, 0]);
            }
            (_, None) => {}
        }
        Ok(self.with_head(list))
    }

    fn check_simple(&self) -> Result<(), Refusal> {
        if self.simple.is_some() { Err(Refusal::ReservationConflict) } else { Ok(()) }
    }

    /// READ FULL STATUS (SPC-4), with the names of initiator ports.
    pub(super) fn full_status(&self, name: impl Fn(Nexus) -> String) -> Result<Vec<u8>, Refusal> {
        self.check_simple()?;
        let mut list = Vec::new();
        for (nexus, key) in &self.keys {
            let kind = self.held.filter(|_| self.holds(*nexus)).map_or(0, |held| held.kind.0);
            let port = transport_id(&name(*nexus));
            list.extend(key.to_be_bytes());
            // R_HOLDER, SCOPE and TYPE, the relative target port.
            list.extend([0, 0, 0, 0, u8::from(kind != 0), kind, 0, 0, 0, 0, 0, 1]);
            list.extend(u32::try_from(port.len()).unwrap_or(u32::MAX).to_be_bytes());
            list.extend(port);
        }
        Ok(self.with_head(list))
    }

    fn with_head(&self, list: Vec<u8>) -> Vec<u8> {
        let len = u32::try_from(list.len()).unwrap_or(u32::MAX).to_be_bytes();
        [self.generation.to_be_bytes().as_slice(), &len, &list].concat()
    }

    /// PERSISTENT RESERVE OUT (SPC-4); tells who must be told what. With RESERVE (6) it is a conflict,
    /// whoever it comes from (SPC-2 5.5.1).
    pub(super) fn change(&mut self, nexus: Nexus, cdb: Cdb, data: &[u8]) -> Result<News, Refusal> {
        if self.simple.is_some() {
            return Err(Refusal::ReservationConflict);
        }
        if cdb.u32(5) != 24 {
            return Err(Check::LIST_LENGTH.into());
        }
        let list = data.get(..24).ok_or(Check::LIST_LENGTH)?;
        let (first, second) = (Cdb::new(&list[..16]), Cdb::new(&list[16..]));
        let keys = Keys { key: first.u64(0), action: first.u64(8) };
        // SPEC_I_PT, ALL_TG_PT and APTPL are not supported.
        if let Some(bit) = [3, 2, 0].into_iter().find(|bit| second.has(4, 1 << bit)) {
            return Err(Check::parameter(20, bit).into());
        }
        let action = cdb.u8(1);
        if matches!(action, 0 | 6) {
            return self.register(nexus, keys, action == 6);
        }
        if self.keys.get(&nexus) != Some(&keys.key) {
            return Err(Refusal::ReservationConflict);
        }
        match action {
            1 => self.reserve(nexus, Type::of(cdb)?),
            2 => self.release(nexus, Type::of(cdb)?),
            3 => Ok(self.clear(nexus)),
            _ => self.preempt(nexus, keys.action, cdb),
        }
    }

    /// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
    fn register(&mut self, nexus: Nexus, keys: Keys, ignore: bool) -> Result<News, Refusal> {
        let registered = self.keys.get(&nexus).copied().unwrap_or(0);
        if !ignore && keys.key != registered {
            return Err(Refusal::ReservationConflict);
        }
        if keys.action == 0 && registered == 0 {
            return Ok(News::new());
        }
        self.generation = self.generation.wrapping_add(1);
        if keys.action != 0 {
            self.keys.insert(nexus, keys.action);
            return Ok(News::new());
        }
        let held = self.holds(nexus);
        self.keys.remove(&nexus);
        Ok(if held { self.holder_left(nexus) } else { News::new() })
    }

    /// A registrant that held the reservation is none any more: it unregistered, or was preempted.
    fn holder_left(&mut self, nexus: Nexus) -> News {
        let Some(held) = self.held else { return News::new() };
        if let (true, Some(other)) = (held.kind.all_registrants(), self.keys.keys().next()) {
            self.held = Some(Held { holder: *other, ..held });
            return News::new();
        }
        self.held = None;
        if held.kind.registrants() { self.others(nexus, RELEASED) } else { News::new() }
    }

    /// The same news for all registrants but `nexus`.
    fn others(&self, nexus: Nexus, code: (u8, u8)) -> News {
        let others = self.keys.keys().filter(|other| **other != nexus);
        others.map(|other| (*other, code)).collect()
    }

    /// RESERVE.
    fn reserve(&mut self, nexus: Nexus, kind: Type) -> Result<News, Refusal> {
        match self.held {
            None => self.held = Some(Held { holder: nexus, kind }),
            Some(held) if self.holds(nexus) && held.kind == kind => {}
            Some(_) => return Err(Refusal::ReservationConflict),
        }
        Ok(News::new())
    }

    /// RELEASE.
    fn release(&mut self, nexus: Nexus, kind: Type) -> Result<News, Refusal> {
        let Some(held) = self.held.filter(|_| self.holds(nexus)) else {
            return Ok(News::new());
        };
        if held.kind != kind {
            return Err(Check::INVALID_RELEASE.into());
        }
        self.held = None;
        Ok(if kind.registrants() { self.others(nexus, RELEASED) } else { News::new() })
    }

    /// CLEAR.
    fn clear(&mut self, nexus: Nexus) -> News {
        let news = self.others(nexus, PREEMPTED);
        self.keys.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        news
    }

    /// PREEMPT, and PREEMPT AND ABORT.
    fn preempt(&mut self, nexus: Nexus, victim: u64, cdb: Cdb) -> Result<News, Refusal> {
        let all = self.held.is_some_and(|held| held.kind.all_registrants());
        if victim == 0 && !all {
            return Err(Check::parameter(8, 7).into());
        }
        let holder_key = self.held.and_then(|held| self.keys.get(&held.holder)).copied();
        // Whether the reservation is taken, and not only registrations.
        let takes = if all { victim == 0 } else { holder_key == Some(victim) };
        let new_kind = if takes { Some(Type::of(cdb)?) } else { None };
        let is_victim = |key: u64| victim == 0 || key == victim;
        if !takes && !self.keys.values().any(|key| is_victim(*key)) {
            return Err(Refusal::ReservationConflict);
        }
        let gone = |(other, key): (&Nexus, &u64)| {
            let keeps_own = takes && *other == nexus;
            (is_victim(*key) && !keeps_own).then_some(*other)
        };
        let gone: Vec<Nexus> = self.keys.iter().filter_map(gone).collect();
        let holder_gone = gone.iter().any(|other| self.holds(*other));
        for other in &gone {
            self.keys.remove(other);
        }
        self.generation = self.generation.wrapping_add(1);
        let mut news: News = gone
            .iter()
            .filter(|other| **other != nexus)
            .map(|other| (*other, REGISTRATION_PREEMPTED))
            .collect();
        if let Some(kind) = new_kind {
            if self.held.is_some_and(|held| held.kind != kind) {
                news.extend(self.others(nexus, RELEASED));
            }
            self.held = Some(Held { holder: nexus, kind });
        } else if holder_gone && self.held.is_some_and(|held| !self.keys.contains_key(&held.holder))
        {
            news.extend(self.holder_left(nexus));
        }
        Ok(news)
    }
}

/// The TransportID of an iSCSI initiator port (SPC-4), filled up to four bytes.
fn transport_id(name: &str) -> Vec<u8> {
    let mut id = name.as_bytes().to_vec();
    id.resize((id.len() + 1).next_multiple_of(4).max(20), 0);
    let [high, low] = u16::try_from(id.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[0x45, 0, high, low], id.as_slice()].concat()
}

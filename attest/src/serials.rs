//! The last serial of each tenant, by which no sealed ticket is taken twice.

use ept::list::List;
use ticket::Origin;
use ticket::error::Error;

/// Tenants that there may be between two boots. Any host can be one, and so can use this up: it can also take
/// no tickets at all.
const TENANTS: usize = 64;

/// What was accepted since boot.
#[derive(Debug)]
pub struct Serials(List<([u8; 32], u64), TENANTS>);

#[expect(clippy::new_without_default, reason = "it is for statics: too large for a stack")]
impl Serials {
    /// Nothing was.
    #[must_use]
    #[expect(clippy::large_stack_frames, reason = "the compiler runs it")]
    pub const fn new() -> Self {
        Self(List::new(([0; 32], 0)))
    }

    /// Whether the ticket may be accepted. Tickets in clear may come again.
    ///
    /// # Errors
    /// [`Error::Replayed`], [`Error::Tenants`].
    pub fn check(&self, ticket: &Origin) -> Result<(), Error> {
        let last = self.0.iter().find(|(known, _)| *known == ticket.tenant);
        match last {
            _ if ticket.serial == 0 => Ok(()),
            Some((_, last)) if *last >= ticket.serial => Err(Error::Replayed),
            None if self.0.len() == TENANTS => Err(Error::Tenants),
            Some(_) | None => Ok(()),
        }
    }

    /// Remembers a ticket that was [checked](Self::check) and then accepted.
    pub fn note(&mut self, ticket: &Origin) {
        let Origin { tenant, serial, .. } = *ticket;
        match self.0.iter_mut().find(|(known, _)| *known == tenant) {
            Some((_, last)) => *last = serial.max(*last),
            // There is room, or the check has said that there is none.
            None if serial != 0 => drop(self.0.push((tenant, serial))),
            None => {}
        }
    }
}

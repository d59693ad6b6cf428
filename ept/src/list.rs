//! A list of fixed capacity: what the visor uses where it has no heap.

/// Up to `N` values in order.
#[derive(Clone, Copy, Debug)]
pub struct List<T, const N: usize> {
    items: [T; N],
    len: usize,
}

/// A list had no room for one more value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl<T: Copy, const N: usize> List<T, N> {
    /// An empty list; `filler` occupies the unused places and is never shown.
    #[must_use]
    pub const fn new(filler: T) -> Self {
        Self { items: [filler; N], len: 0 }
    }

    /// Appends `item`.
    ///
    /// # Errors
    /// [`Full`] when there are `N` already.
    pub fn push(&mut self, item: T) -> Result<(), Full> {
        let place = self.items.get_mut(self.len).ok_or(Full)?;
        *place = item;
        self.len += 1;
        Ok(())
    }

    /// Takes out the value at `at`, if there is one; the last takes its place.
    pub fn swap_remove(&mut self, at: usize) -> Option<T> {
        let last = *self.last()?;
        let taken = core::mem::replace(self.get_mut(at)?, last);
        self.len -= 1;
        Some(taken)
    }

    /// Forgets every value.
    pub const fn clear(&mut self) {
        self.len = 0;
    }
}

impl<T, const N: usize> core::ops::Deref for List<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        self.items.get(..self.len).unwrap_or_default()
    }
}

impl<T, const N: usize> core::ops::DerefMut for List<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.items.get_mut(..self.len).unwrap_or_default()
    }
}

impl<T: PartialEq, const N: usize> PartialEq for List<T, N> {
    fn eq(&self, other: &Self) -> bool {
        self.items.get(..self.len) == other.items.get(..other.len)
    }
}

impl<T: Eq, const N: usize> Eq for List<T, N> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_what_was_pushed_and_never_its_filler() {
        let mut list = List::<u8, 2>::new(9);
        assert!(list.is_empty());
        assert_eq!(list.push(1), Ok(()));
        assert_eq!(*list, [1]);
        assert_eq!(list.push(2), Ok(()));
        assert_eq!(list.push(3), Err(Full));
        list[0] = 7;
        assert_eq!(*list, [7, 2]);
        list.clear();
        assert!(list.is_empty());
    }

    #[test]
    fn the_last_takes_the_place_of_what_is_taken_out() {
        let mut list = List::<u8, 3>::new(0);
        for item in [1, 2, 3] {
            list.push(item).unwrap();
        }
        assert_eq!(list.swap_remove(3), None);
        assert_eq!(list.swap_remove(0), Some(1));
        assert_eq!(*list, [3, 2]);
        assert_eq!(list.swap_remove(1), Some(2));
        assert_eq!(list.swap_remove(0), Some(3));
        assert_eq!(list.swap_remove(0), None);
        assert!(list.is_empty());
    }

    #[test]
    fn lists_are_equal_when_they_show_the_same() {
        let (mut one, mut other) = (List::<u8, 2>::new(9), List::<u8, 2>::new(8));
        assert_eq!(one, other);
        one.push(1).unwrap();
        assert_ne!(one, other);
        other.push(1).unwrap();
        assert_eq!(one, other);
    }
}

//! Loops whose counter has to be a constant.

/// How often [`unroll`] calls.
pub(crate) const UNROLLED: usize = 16;

/// Calls a generic method for each constant below [`UNROLLED`].
macro_rules! unroll {
    ($receiver:ident.$method:ident()) => {
        $crate::unroll::unroll!(@ $receiver $method 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $receiver:ident $method:ident $($number:literal)*) => {
        $($receiver.$method::<$number>();)*
    };
}
pub(crate) use unroll;

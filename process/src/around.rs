//! Streams around streams.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;

/// What is copied to be written as one: for so little that costs less than what `writev` costs the kernel beside `send`.
const SMALL: usize = 2048;

/// Writes slices to a stream.
pub fn poll_write_slices<S: AsyncWrite>(
    stream: Pin<&mut S>,
    context: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    if let [slice] = slices {
        return stream.poll_write(context, slice);
    }
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    if total > SMALL {
        return stream.poll_write_vectored(context, slices);
    }
    let mut whole = [0; SMALL];
    let mut at = 0;
    for slice in slices {
        whole[at..][..slice.len()].copy_from_slice(slice);
        at += slice.len();
    }
    stream.poll_write(context, &whole[..total])
}

/// Implements [`AsyncWrite`](tokio::io::AsyncWrite) for a stream around another, its field `stream`, of which only the
/// reading differs: `writes_pass!(Watched)`, or `writes_pass!(Guard<S>)` where any stream may be inside.
#[macro_export]
macro_rules! writes_pass {
    ($around:ident<$inner:ident>) => {
        impl<$inner: ::tokio::io::AsyncWrite + Unpin> ::tokio::io::AsyncWrite for $around<$inner> {
            $crate::writes_pass!();
        }
    };
    ($around:ident) => {
        impl ::tokio::io::AsyncWrite for $around {
            $crate::writes_pass!();
        }
    };
    () => {
        $crate::writes_pass!(but shutdown);

        fn poll_shutdown(
            mut self: ::std::pin::Pin<&mut Self>,
            context: &mut ::std::task::Context<'_>,
        ) -> ::std::task::Poll<::std::io::Result<()>> {
            ::tokio::io::AsyncWrite::poll_shutdown(::std::pin::Pin::new(&mut self.stream), context)
        }
    };
    (but shutdown) => {
        fn poll_write(
            mut self: ::std::pin::Pin<&mut Self>,
            context: &mut ::std::task::Context<'_>,
            bytes: &[u8],
        ) -> ::std::task::Poll<::std::io::Result<usize>> {
            ::tokio::io::AsyncWrite::poll_write(::std::pin::Pin::new(&mut self.stream), context, bytes)
        }

        fn poll_write_vectored(
            mut self: ::std::pin::Pin<&mut Self>,
            context: &mut ::std::task::Context<'_>,
            slices: &[::std::io::IoSlice<'_>],
        ) -> ::std::task::Poll<::std::io::Result<usize>> {
            $crate::around::poll_write_slices(::std::pin::Pin::new(&mut self.stream), context, slices)
        }

        fn is_write_vectored(&self) -> bool {
            ::tokio::io::AsyncWrite::is_write_vectored(&self.stream)
        }

        fn poll_flush(
            mut self: ::std::pin::Pin<&mut Self>,
            context: &mut ::std::task::Context<'_>,
        ) -> ::std::task::Poll<::std::io::Result<()>> {
            ::tokio::io::AsyncWrite::poll_flush(::std::pin::Pin::new(&mut self.stream), context)
        }
    };
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn slices_are_written_in_their_order_and_counted() {
        for sizes in [&[5][..], &[0, 7, 0, 3], &[SMALL - 1, 1], &[SMALL, 1], &[]] {
            let (mut near, mut far) = duplex(2 * SMALL);
            let parts: Vec<Vec<u8>> = sizes.iter().zip(1..).map(|(&size, byte)| vec![byte; size]).collect();
            let slices: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
            let written = poll_fn(|context| poll_write_slices(Pin::new(&mut near), context, &slices)).await;
            let written = written.unwrap();
            drop(near);
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, parts.concat()[..written], "{sizes:?}");
            let whole = sizes.iter().sum::<usize>();
            assert!(written == whole || whole > SMALL, "{sizes:?}: {written}");
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_left_to_be_written_again() {
        let (mut near, _far) = duplex(6);
        let slices = [IoSlice::new(b"1234"), IoSlice::new(b"5678")];
        let written = poll_fn(|context| poll_write_slices(Pin::new(&mut near), context, &slices)).await;
        assert_eq!(written.unwrap(), 6);
    }
}

//! Streams around streams.

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
            ::tokio::io::AsyncWrite::poll_write_vectored(
                ::std::pin::Pin::new(&mut self.stream),
                context,
                slices,
            )
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

        fn poll_shutdown(
            mut self: ::std::pin::Pin<&mut Self>,
            context: &mut ::std::task::Context<'_>,
        ) -> ::std::task::Poll<::std::io::Result<()>> {
            ::tokio::io::AsyncWrite::poll_shutdown(::std::pin::Pin::new(&mut self.stream), context)
        }
    };
}

//! A connection with TLS, where the address asks for it.

use futures::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, Error, NoTls, tls::TlsStream as Secure,
};

/// What a connection has to say, until it ends. Polling it drives the connection.
pub(super) type Messages = BoxStream<'static, Result<AsyncMessage, Error>>;

/// Connects, with TLS where the address says `sslmode=require`.
///
/// A program that has connections of its own has the same TLS as the queue with this. The connection is driven by the
/// future that is returned, which ends with it: spawn it, and abort it with the client.
///
/// # Errors
///
/// [`Error`] if the server cannot be reached, refuses the client, or has no certificate that is trusted.
///
/// # Cancel safety
///
/// If the future is dropped, the connection is closed.
pub async fn connect(
    config: &Config,
) -> Result<(Client, BoxFuture<'static, Result<(), Error>>), Error> {
    let (client, mut messages) = open(config).await?;
    let driven = Box::pin(async move {
        while let Some(message) = messages.next().await {
            message?;
        }
        Ok(())
    });
    Ok((client, driven))
}

pub(super) async fn open(config: &Config) -> Result<(Client, Messages), Error> {
    #[cfg(feature = "postgres-tls")]
    if config.get_ssl_mode() == tokio_postgres::config::SslMode::Require {
        let (client, connection) = config.connect(with_tls::Tls).await?;
        return Ok((client, messages(connection)));
    }
    let (client, connection) = config.connect(NoTls).await?;
    Ok((client, messages(connection)))
}

fn messages<S, T>(mut connection: Connection<S, T>) -> Messages
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: Secure + Unpin + Send + 'static,
{
    stream::poll_fn(move |context| connection.poll_message(context)).boxed()
}

#[cfg(feature = "postgres-tls")]
mod with_tls {
    use std::{
        io,
        pin::Pin,
        sync::Arc,
        task::{Context, Poll},
    };

    use futures::{FutureExt, future::BoxFuture};
    use tokio::{
        io::{AsyncRead, AsyncWrite, ReadBuf},
        sync::OnceCell,
        task::spawn_blocking,
    };
    use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
    use tokio_rustls::{
        TlsConnector, client,
        rustls::{
            ClientConfig, RootCertStore,
            crypto::ring,
            pki_types::{InvalidDnsNameError, ServerName},
        },
    };

    /// The settings of all connections. The certificates are read once.
    static SETTINGS: OnceCell<Arc<ClientConfig>> = OnceCell::const_new();

    /// Makes connections with TLS, which trust the certificates that the system trusts.
    #[derive(Clone, Copy, Debug)]
    pub(super) struct Tls;

    impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Tls {
        type Stream = Encrypted<S>;
        type TlsConnect = ToServer;
        type Error = InvalidDnsNameError;

        fn make_tls_connect(&mut self, domain: &str) -> Result<ToServer, InvalidDnsNameError> {
            Ok(ToServer(ServerName::try_from(domain)?.to_owned()))
        }
    }

    /// The name of the server that its certificate has to have.
    #[derive(Debug)]
    pub(super) struct ToServer(ServerName<'static>);

    impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for ToServer {
        type Stream = Encrypted<S>;
        type Error = io::Error;
        type Future = BoxFuture<'static, io::Result<Encrypted<S>>>;

        fn connect(self, stream: S) -> Self::Future {
            async move {
                let settings = SETTINGS.get_or_try_init(settings).await?;
                let connector = TlsConnector::from(settings.clone());
                Ok(Encrypted(connector.connect(self.0, stream).await?))
            }
            .boxed()
        }
    }

    async fn settings() -> io::Result<Arc<ClientConfig>> {
        let found = spawn_blocking(rustls_native_certs::load_native_certs).await?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = found.errors.first().map(ToString::to_string).unwrap_or_default();
            let text =
                format!("expected certificates that the system trusts, and found none: {why}");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let provider = Arc::new(ring::default_provider());
        let settings = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(settings))
    }

    /// A stream with TLS.
    #[derive(Debug)]
    pub(super) struct Encrypted<S>(client::TlsStream<S>);

    impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
        fn channel_binding(&self) -> ChannelBinding {
            ChannelBinding::none()
        }
    }
}

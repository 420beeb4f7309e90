//! The flags.

use std::{net::IpAddr, path::PathBuf};

use clap::Parser;

use store::{
    admins::{Credentials, CredentialsError},
    domain::moment::ReleaseAt,
};

/// A shop that sells limited shoes in drops
#[derive(Clone, Debug, Parser)]
#[command(name = "store")]
pub struct Args {
    /// The address to serve on
    #[arg(long, default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// The port of the shop; 0 picks a free one
    #[arg(long, default_value_t = 4000)]
    pub port: u16,

    /// The port of the operator's page and health checks, on 127.0.0.1; 0 picks a free one. Default: the port after --port
    #[arg(long)]
    pub admin_port: Option<u16>,

    /// The host by which shoppers know the shop, if it is not the address. Pages of other hosts may not connect
    #[arg(long, value_name = "HOST")]
    pub public_host: Option<String>,

    /// The address of a proxy in front of the shop, whose header x-forwarded-for says where a request comes from. May be given
    /// several times, or with commas between them. Wrong passwords are counted by name and address, and without this, all that
    /// come through a proxy have its address
    #[arg(
        long,
        env = "STORE_TRUSTED_PROXY",
        hide_env_values = true,
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub trusted_proxy: Vec<IpAddr>,

    /// The file of the database. It is created if need be, and once: a file with the ending .created is written next to it,
    /// and while that is there, a database that is missing is waited for
    #[arg(long, default_value = "store.db", value_name = "PATH")]
    pub db: PathBuf,

    /// The address of a database in PostgreSQL, instead of a file: `postgres://user:password@host/shop`, for nodes on several
    /// machines; needs the feature postgres, and --secret. Its tables are made if there are none. With `?sslmode=require` at the
    /// end, connections have TLS: the server's certificate is for the host, and signed by one that the system trusts, or that is
    /// in the file that `SSL_CERT_FILE` names
    #[arg(
        long,
        env = "STORE_DATABASE",
        hide_env_values = true,
        value_name = "URL",
        conflicts_with = "fresh",
        requires = "secret"
    )]
    pub database: Option<String>,

    /// Waits for the database instead of creating it, for a folder that may not be mounted yet
    #[arg(long, conflicts_with = "fresh")]
    pub no_create: bool,

    /// Removes the file of the database first
    #[arg(long)]
    pub fresh: bool,

    /// The number that the stock of a new database is drawn from
    #[arg(long, default_value_t = 23, value_name = "N")]
    pub seed: u64,

    /// An admin; may be given several times, or with commas between them, so a password has no comma. A build for debugging
    /// has admin:password by default
    // It is read later, because an error that clap finds repeats the value.
    #[arg(
        long,
        env = "STORE_ADMIN",
        hide_env_values = true,
        value_name = "USER:PASSWORD",
        value_delimiter = ','
    )]
    admin: Vec<String>,

    /// The secret that signs carts and tokens, at least 20 bytes, the same on all nodes. Default: a random one, which is
    /// kept in a file next to the database
    #[arg(long, env = "SECRET_KEY_BASE", hide_env_values = true)]
    pub secret: Option<String>,

    /// The name of this node
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,

    /// Joins the nodes that use this server of Redis; needs the feature redis. The URL has the password that all
    /// nodes know
    #[arg(
        long,
        env = "STORE_REDIS",
        hide_env_values = true,
        value_name = "URL",
        conflicts_with = "nats"
    )]
    pub redis: Option<String>,

    /// Joins the nodes that use this server of NATS, or one of several with commas between them; needs the feature nats. Each
    /// URL may have the name and the password that all nodes know
    #[arg(long, env = "STORE_NATS", hide_env_values = true, value_name = "URLS")]
    pub nats: Option<String>,

    /// Where metrics go
    #[arg(long, value_name = "HOST:PORT")]
    pub statsd: Option<String>,

    /// How many items a cart may have
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = parse_items)]
    pub max_cart_items: usize,

    /// A product to release: 1 at once, 1@+30 in 30 seconds, 1@2026-01-31T20:00:00Z then. May be given several times
    #[arg(long, value_name = "ID[@TIME]")]
    pub release: Vec<ReleaseAt>,

    /// A crowd that tries to buy so many items a second until all is sold
    #[arg(long, value_name = "RATE")]
    pub sell: Option<usize>,

    /// Shows the pages /bench/1 to /bench/4 of a load on the dashboard
    #[arg(long)]
    pub bench: bool,

    /// Closes a socket when it has been open for so many seconds, or up to a tenth earlier: its page connects again, maybe to
    /// another node
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_age: Option<u64>,

    /// Closes sockets, half of them at most, while the node uses more than this part of all cores
    #[arg(long, value_name = "PERCENT")]
    pub shed_cpu: Option<f64>,

    /// Closes sockets, half of them at most, while the node uses more memory than this
    #[arg(long, value_name = "MIB")]
    pub shed_memory: Option<u64>,

    /// For how many seconds the node uses more than that before it closes sockets
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub shed_after: u64,

    /// For how many seconds a node that ends serves as before, while a load balancer that asks /readyz notices
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub linger_secs: u64,

    /// Makes each answer of the database so much later, in milliseconds: a drill
    #[arg(long, hide = true, value_name = "MS")]
    pub drill_database: Option<u64>,

    /// Makes the stage that tells levels so much slower, in milliseconds an event: a drill
    #[arg(long, hide = true, value_name = "MS")]
    pub drill_worker: Option<u64>,

    /// Lets the inspector kill stages: a drill
    #[arg(long, hide = true)]
    pub drill_kill: bool,

    /// Does not apply what other nodes say
    #[arg(long, hide = true)]
    pub no_replication: bool,

    /// Does not compare the copy with the database
    #[arg(long, hide = true)]
    pub no_comparison: bool,

    /// How long sockets have at a stop, in seconds
    #[arg(long, default_value_t = 10)]
    pub drain_secs: u64,
}

fn parse_items(text: &str) -> Result<usize, String> {
    let items: usize = text.parse().map_err(|_| "expected a number".to_owned())?;
    // A signed cart has to be short enough to be looked at.
    if (1..=100).contains(&items) { Ok(items) } else { Err("expected 1 to 100".to_owned()) }
}

/// What is missing to start.
#[derive(Debug, thiserror::Error)]
pub enum AdminsError {
    /// There is none.
    #[error("--admin USER:PASSWORD is needed: only a build for debugging has a default")]
    None,
    /// One cannot be read.
    #[error("--admin: {0}, and no comma in them")]
    Wrong(#[from] CredentialsError),
}

impl Args {
    /// The admins.
    pub fn admins(&self) -> Result<Vec<Credentials>, AdminsError> {
        if !self.admin.is_empty() {
            return Ok(self.admin.iter().map(|it| it.parse()).collect::<Result<_, _>>()?);
        }
        default_admin(cfg!(debug_assertions)).map(|it| vec![it]).ok_or(AdminsError::None)
    }

    /// The port of the operator's listener.
    pub fn operator_port(&self) -> u16 {
        let next = if self.port == 0 { 0 } else { self.port.saturating_add(1) };
        self.admin_port.unwrap_or(next)
    }
}

/// The admin of a build for debugging. Another build has none.
fn default_admin(is_for_debugging: bool) -> Option<Credentials> {
    is_for_debugging.then(|| "admin:password".parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_104_only_a_build_for_debugging_has_an_admin_by_default() {
        assert!(default_admin(true).is_some());
        assert!(default_admin(false).is_none());
        let given = Args::try_parse_from(["store", "--admin", "ann:one", "--admin", "bob:two"]);
        assert_eq!(given.unwrap().admins().unwrap().len(), 2);
        assert!(Args::try_parse_from(["store", "--admin", "ann"]).unwrap().admins().is_err());
    }

    #[test]
    fn no_help_and_no_error_says_a_password() {
        let command = Args::command();
        let from_outside = command.get_arguments().filter(|it| it.get_env().is_some());
        let shown: Vec<_> = from_outside.filter(|it| !it.is_hide_env_values_set()).collect();
        assert!(shown.is_empty(), "{shown:?}");
        let given = Args::try_parse_from(["store", "--admin", "ann:pass,word"]).unwrap();
        let error = given.admins().unwrap_err().to_string();
        assert!(error.contains("comma") && !error.contains("word,") && !error.contains("pass,"));
    }

    #[test]
    fn flags_are_read_and_wrong_ones_are_refused() {
        let args =
            Args::try_parse_from(["store", "--port", "0", "--release", "1@+30", "--sell", "5"])
                .unwrap();
        assert_eq!((args.operator_port(), args.release.len(), args.sell), (0, 1, Some(5)));
        for wrong in [["store", "--max-cart-items", "0"], ["store", "--release", "x"]] {
            assert!(Args::try_parse_from(wrong).is_err());
        }
    }
}

//! A shopper as a program: requests, and a socket with the protocol of the official client.

use std::{collections::HashMap, error::Error, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

type Failure = Box<dyn Error + Send + Sync>;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// The head and the body of an answer.
pub(crate) async fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Result<(String, String), Failure> {
    let mut stream = TcpStream::connect(address).await?;
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    timeout(ANSWER, stream.read_to_string(&mut answer)).await??;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// What stands after some text of a page, up to the next quotation mark.
pub(crate) fn after(page: &str, text: &str) -> Result<String, Failure> {
    let rest = page.split_once(text).ok_or_else(|| format!("no {text}"))?.1;
    Ok(rest.split('"').next().unwrap_or_default().to_owned())
}

/// An open page.
pub(crate) struct Page {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    refs: u32,
    joined: HashMap<String, String>,
    /// What came while an answer was waited for.
    waiting: Vec<Value>,
}

impl Page {
    async fn open(url: String, token: Option<&str>) -> Result<Self, Failure> {
        let mut request = url.into_client_request()?;
        if let Some(token) = token {
            let protocols =
                format!("phoenix, base64url.bearer.phx.{}", STANDARD_NO_PAD.encode(token));
            request.headers_mut().insert("sec-websocket-protocol", protocols.parse()?);
        }
        let (stream, _) = timeout(ANSWER, connect_async(request)).await??;
        Ok(Self { stream, refs: 0, joined: HashMap::new(), waiting: Vec::new() })
    }

    /// The page of an admin.
    pub(crate) async fn admin(address: &str, credentials: &str) -> Result<Self, Failure> {
        let (_, page) = request(address, "GET", "/admin", &[credentials], "").await?;
        let token = after(&page, "name=\"admin-token\" content=\"")?;
        Self::open(format!("ws://{address}/admin_socket/websocket?vsn=2.0.0"), Some(&token)).await
    }

    /// The totals of this moment.
    pub(crate) async fn totals(&mut self) -> Result<Value, Failure> {
        // A join that replaces the one before.
        self.ask("admin:totals", "phx_join", json!({})).await
    }

    /// Asks, and waits for the answer.
    async fn ask(&mut self, topic: &str, event: &str, payload: Value) -> Result<Value, Failure> {
        self.refs += 1;
        let reference = self.refs.to_string();
        if event == "phx_join" {
            self.joined.insert(topic.to_owned(), reference.clone());
        }
        let join_ref = self.joined.get(topic);
        let message = json!([join_ref, reference, topic, event, payload]).to_string();
        self.stream.send(Message::text(message)).await?;
        let deadline = Instant::now().checked_add(ANSWER).ok_or("too late")?;
        loop {
            let message = self.next(deadline.saturating_duration_since(Instant::now())).await?;
            if message[1] == json!(reference) && message[3] == "phx_reply" {
                return match message[4]["status"].as_str() {
                    Some("ok") => Ok(message[4]["response"].clone()),
                    _ => Err(message[4]["response"].to_string().into()),
                };
            }
            self.waiting.push(message);
        }
    }

    async fn next(&mut self, within: Duration) -> Result<Value, Failure> {
        loop {
            match timeout(within, self.stream.next()).await?.ok_or("the socket has ended")?? {
                Message::Text(text) => return Ok(serde_json::from_str(&text)?),
                Message::Close(_) => return Err("the socket was closed".into()),
                _ => {}
            }
        }
    }
}

/// A shopper with an open page.
pub(crate) struct Shopper {
    address: String,
    page: Page,
    cookie: String,
    csrf: String,
    cart: String,
    levels: HashMap<i64, (i64, String)>,
    products: HashMap<i64, (bool, Vec<i64>)>,
    beat: Instant,
}

impl Shopper {
    /// Opens a page, and joins what the page joins.
    pub(crate) async fn arrive(address: String) -> Result<Self, Failure> {
        let (head, html) = request(&address, "GET", "/", &[], "").await?;
        let cookie = head.split_once("set-cookie: ").ok_or("no cookie")?.1;
        let cookie = format!("cookie: {}", cookie.split(';').next().unwrap_or_default());
        let meta = |name: &str| after(&html, &format!("name=\"{name}\" content=\""));
        let (id, token, csrf) = (meta("cart-id")?, meta("cart-token")?, meta("csrf-token")?);
        let url = format!("ws://{address}/product_socket/websocket?vsn=2.0.0");
        let mut shopper = Self {
            page: Page::open(url, None).await?,
            address,
            cookie,
            csrf,
            cart: format!("cart:{id}"),
            levels: HashMap::new(),
            products: HashMap::new(),
            beat: Instant::now(),
        };
        for product in [1, 2] {
            let joined =
                shopper.page.ask(&format!("product:{product}"), "phx_join", json!({})).await?;
            let levels = joined["levels"].as_array().ok_or("no levels")?;
            let items = levels.iter().filter_map(|level| level["item_id"].as_i64()).collect();
            levels.iter().for_each(|level| shopper.level(level));
            shopper.products.insert(product, (joined["released"] == true, items));
        }
        let cart = shopper.cart.clone();
        shopper.page.ask(&cart, "phx_join", json!({ "token": token, "page": "/" })).await?;
        Ok(shopper)
    }

    /// A page drops what has a lower revision than it knows.
    fn level(&mut self, level: &Value) {
        let (Some(item), Some(rev)) = (level["item_id"].as_i64(), level["rev"].as_i64()) else {
            return;
        };
        let known = self.levels.entry(item).or_default();
        if rev >= known.0 {
            *known = (rev, level["level"].as_str().unwrap_or_default().to_owned());
        }
    }

    fn is_available(&self, item: i64) -> bool {
        self.levels.get(&item).is_some_and(|(_, level)| level != "out")
    }

    /// Whether everything is released and gone.
    pub(crate) fn sees_nothing_left(&self) -> bool {
        let gone = |items: &[i64]| items.iter().all(|item| !self.is_available(*item));
        self.products.values().all(|(is_released, items)| *is_released && gone(items))
    }

    /// An item that the page offers.
    pub(crate) fn wants(&self) -> Option<i64> {
        let released = self.products.values().filter(|(is_released, _)| *is_released);
        let items: Vec<i64> = released
            .flat_map(|(_, items)| items)
            .copied()
            .filter(|item| self.is_available(*item))
            .collect();
        fastrand::choice(items)
    }

    fn handle(&mut self, message: &Value) {
        match message[3].as_str() {
            Some("stock_change") => self.level(&message[4]),
            Some("released") => {
                let topic = message[2].as_str().unwrap_or_default();
                let product = topic.strip_prefix("product:").and_then(|id| id.parse().ok());
                if let Some((is_released, _)) =
                    product.and_then(|id: i64| self.products.get_mut(&id))
                {
                    *is_released = true;
                }
            }
            _ => {}
        }
    }

    fn catch_up(&mut self) {
        for message in std::mem::take(&mut self.page.waiting) {
            self.handle(&message);
        }
    }

    /// Waits for the next event of the page.
    pub(crate) async fn hear(&mut self, within: Duration) -> Result<(), Failure> {
        let until = Instant::now().checked_add(within).ok_or("too late")?;
        self.catch_up();
        loop {
            let left = until.saturating_duration_since(Instant::now()).min(Duration::from_secs(25));
            match self.page.next(left).await {
                Ok(message) => {
                    self.handle(&message);
                    return Ok(());
                }
                Err(error) if error.is::<tokio::time::error::Elapsed>() => {
                    self.heartbeat().await?;
                    if Instant::now() >= until {
                        return Err(error);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Hears everything that comes for a while.
    pub(crate) async fn hear_for(&mut self, time: Duration) -> Result<(), Failure> {
        let until = Instant::now().checked_add(time).ok_or("too late")?;
        self.catch_up();
        if self.beat.elapsed() > Duration::from_secs(25) {
            self.heartbeat().await?;
        }
        loop {
            match self.page.next(until.saturating_duration_since(Instant::now())).await {
                Ok(message) => self.handle(&message),
                Err(error) if error.is::<tokio::time::error::Elapsed>() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn heartbeat(&mut self) -> Result<(), Failure> {
        self.beat = Instant::now();
        self.page.ask("phoenix", "heartbeat", json!({})).await.map(drop)
    }

    /// Puts an item into the cart and buys it. Returns whether there was one.
    pub(crate) async fn buy(&mut self, item: i64) -> Result<bool, Failure> {
        let topic = self.cart.clone();
        let Ok(cart) = self.page.ask(&topic, "add_item", json!({ "item_id": item })).await else {
            return Ok(false);
        };
        let signed = cart["serialized"].as_str().unwrap_or_default();
        let key = fastrand::u64(..);
        let form = format!("serialized_cart={signed}&csrf_token={}&key={key}", self.csrf);
        let (head, _) = request(&self.address, "POST", "/checkout", &[&self.cookie], &form).await?;
        if head.contains("/checkout/complete") {
            return Ok(true);
        }
        let is_gone = head.contains(" 409 ");
        // It looks for another one.
        let _ = self.page.ask(&topic, "remove_item", json!({ "item_id": item })).await;
        if is_gone { Ok(false) } else { Err(head.into()) }
    }
}

//! A shopper as a program: requests, and a socket with the protocol of the official client.

use std::{collections::HashMap, error::Error, io, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

type Failure = Box<dyn Error + Send + Sync>;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// How long a shopper sends a form again that has no answer.
const GIVES_UP: Duration = Duration::from_secs(300);

/// How often a page says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(25);

/// The head and the body of an answer.
pub(crate) async fn request(
    address: &str,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> Result<(String, String), Failure> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\
         content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(ANSWER, answer).await.map_err(|_| "no answer within a minute")??;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// What stands after some text of a page, up to the next quotation mark.
pub(crate) fn after(page: &str, text: &str) -> Result<String, Failure> {
    let rest = page.split_once(text).ok_or_else(|| format!("no {text}"))?.1;
    Ok(rest.split('"').next().unwrap_or_default().to_owned())
}

type Stream = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// An open page. A task reads what comes, so the page is up to date also while its shopper waits for an answer.
pub(crate) struct Page {
    sink: Arc<tokio::sync::Mutex<SplitSink<Stream, Message>>>,
    refs: u32,
    joined: HashMap<String, String>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    heart: JoinHandle<()>,
}

/// What the reader of a page has heard.
#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Notify,
}

#[derive(Default)]
struct Seen {
    answers: HashMap<String, oneshot::Sender<Value>>,
    levels: HashMap<i64, (i64, String)>,
    products: HashMap<i64, Product>,
    cart: Cart,
    /// When the page showed for the first time that everything is released and gone.
    nothing_left: Option<Instant>,
    ended: Option<Instant>,
}

/// The cart of a page, as the last reply or push has it.
#[derive(Clone, Default)]
struct Cart {
    /// What the browser keeps.
    serialized: Option<String>,
    items: Vec<i64>,
    /// Those of them that are gone.
    gone: Vec<i64>,
}

#[derive(Default)]
struct Product {
    is_released: bool,
    items: Vec<i64>,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.reader.abort();
        self.heart.abort();
    }
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
        let (sink, stream) = stream.split();
        let shared = Arc::<Shared>::default();
        let reader = tokio::spawn(read(stream, shared.clone()));
        let sink = Arc::new(tokio::sync::Mutex::new(sink));
        let heart = tokio::spawn(beat(sink.clone()));
        Ok(Self { sink, refs: 0, joined: HashMap::new(), shared, reader, heart })
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
        let (answer, answered) = oneshot::channel();
        {
            let mut seen = self.shared.seen.lock();
            if seen.ended.is_some() {
                return Err("the socket has ended".into());
            }
            seen.answers.insert(reference.clone(), answer);
        }
        let join_ref = self.joined.get(topic);
        let message = json!([join_ref, reference, topic, event, payload]).to_string();
        self.sink.lock().await.send(Message::text(message)).await?;
        let answer = timeout(ANSWER, answered).await.map_err(|_| "no reply within a minute")?;
        let answer = answer.map_err(|_| "the socket has ended")?;
        match answer["status"].as_str() {
            Some("ok") => Ok(answer["response"].clone()),
            _ => Err(answer["response"].to_string().into()),
        }
    }
}

/// Says that the page is there, until the socket ends.
async fn beat(sink: Arc<tokio::sync::Mutex<SplitSink<Stream, Message>>>) {
    let message = json!([null, "beat", "phoenix", "heartbeat", {}]).to_string();
    loop {
        sleep(HEARTBEAT).await;
        if sink.lock().await.send(Message::text(message.clone())).await.is_err() {
            return;
        }
    }
}

/// Reads until the socket ends.
async fn read(mut stream: SplitStream<Stream>, shared: Arc<Shared>) {
    while let Some(Ok(message)) = stream.next().await {
        let Message::Text(text) = message else { continue };
        let Ok(message) = serde_json::from_str::<Value>(&text) else { continue };
        shared.seen.lock().hear(&message);
        shared.changed.notify_one();
    }
    let mut seen = shared.seen.lock();
    seen.ended = Some(Instant::now());
    // A question that waits hears that no answer comes.
    seen.answers.clear();
    drop(seen);
    shared.changed.notify_one();
}

impl Seen {
    fn hear(&mut self, message: &Value) {
        match message[3].as_str() {
            Some("phx_reply") => {
                self.cart(&message[4]["response"]);
                let answer = message[1].as_str().and_then(|it| self.answers.remove(it));
                if let Some(answer) = answer {
                    // The one that asked may have given up.
                    let _ = answer.send(message[4].clone());
                }
                return;
            }
            Some("cart") => return self.cart(&message[4]),
            Some("stock_change") => self.level(&message[4]),
            Some("released") => {
                let topic = message[2].as_str().unwrap_or_default();
                let product = topic.strip_prefix("product:").and_then(|id| id.parse().ok());
                if let Some(product) = product.and_then(|id: i64| self.products.get_mut(&id)) {
                    product.is_released = true;
                }
            }
            _ => return,
        }
        self.look();
    }

    /// Keeps the cart that a message has, if it has one.
    fn cart(&mut self, cart: &Value) {
        let (Some(serialized), Some(items)) =
            (cart["serialized"].as_str(), cart["items"].as_array())
        else {
            return;
        };
        let ids = |are: &dyn Fn(&Value) -> bool| {
            items.iter().filter(|item| are(item)).filter_map(|item| item["id"].as_i64()).collect()
        };
        self.cart = Cart {
            serialized: Some(serialized.to_owned()),
            items: ids(&|_| true),
            gone: ids(&|item| item["out_of_stock"] == true),
        };
    }

    /// What the answer to the join of a product says.
    fn joined(&mut self, id: i64, joined: &Value) -> Result<(), Failure> {
        let levels = joined["levels"].as_array().ok_or("no levels")?;
        let items = levels.iter().filter_map(|level| level["item_id"].as_i64()).collect();
        levels.iter().for_each(|level| self.level(level));
        let product = self.products.entry(id).or_default();
        product.is_released |= joined["released"] == true;
        product.items = items;
        self.look();
        Ok(())
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

    /// Notes when everything is released and gone.
    fn look(&mut self) {
        let is_gone = |product: &Product| {
            product.is_released && !product.items.iter().any(|item| self.is_available(*item))
        };
        if self.products.len() < PRODUCTS.len() || !self.products.values().all(is_gone) {
            self.nothing_left = None;
        } else if self.nothing_left.is_none() {
            self.nothing_left = Some(Instant::now());
        }
    }

    /// An item that the page offers.
    fn wants(&self) -> Option<i64> {
        let released = self.products.values().filter(|product| product.is_released);
        let items: Vec<i64> = released
            .flat_map(|product| &product.items)
            .copied()
            .filter(|item| self.is_available(*item))
            .collect();
        fastrand::choice(items)
    }
}

const PRODUCTS: [i64; 2] = [1, 2];

/// A shopper with an open page.
pub(crate) struct Shopper {
    address: String,
    page: Page,
    cookie: String,
    csrf: String,
    topic: String,
    token: String,
    path: String,
}

/// The milliseconds before the tries to connect again. These are the delays of the official client.
const AGAIN: [u64; 9] = [10, 50, 100, 150, 200, 250, 500, 1000, 2000];

/// The milliseconds before all later tries.
const LATER: u64 = 5000;

impl Shopper {
    /// Opens the page, and joins what it joins. `page` is what it says that it is.
    pub(crate) async fn arrive(address: String, page: &str) -> Result<Self, Failure> {
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
            topic: format!("cart:{id}"),
            token,
            path: page.to_owned(),
        };
        shopper.join().await?;
        Ok(shopper)
    }

    async fn join(&mut self) -> Result<(), Failure> {
        for product in PRODUCTS {
            let topic = format!("product:{product}");
            let joined = self.page.ask(&topic, "phx_join", json!({})).await?;
            self.page.shared.seen.lock().joined(product, &joined)?;
        }
        let (topic, params) = (
            self.topic.clone(),
            json!({ "token": self.token, "page": self.path, "serialized": self.cart().serialized }),
        );
        self.page.ask(&topic, "phx_join", params).await?;
        Ok(())
    }

    /// Whether the page is cut off.
    pub(crate) fn has_ended(&self) -> bool {
        self.page.shared.seen.lock().ended.is_some()
    }

    /// Connects again as the official client does. Returns how long the page was cut off.
    pub(crate) async fn reconnect(&mut self) -> Result<Duration, Failure> {
        let ended = self.page.shared.seen.lock().ended.unwrap_or_else(Instant::now);
        for delay in AGAIN.into_iter().chain([LATER; 10]) {
            sleep(Duration::from_millis(delay)).await;
            let url = format!("ws://{}/product_socket/websocket?vsn=2.0.0", self.address);
            let Ok(page) = Page::open(url, None).await else { continue };
            page.shared.seen.lock().cart = self.cart();
            self.page = page;
            if self.join().await.is_ok() {
                return Ok(ended.elapsed());
            }
        }
        Err("it cannot connect again".into())
    }

    /// When the page showed that everything is released and gone, if it does.
    pub(crate) fn saw_nothing_left(&self) -> Option<Instant> {
        self.page.shared.seen.lock().nothing_left
    }

    /// An item that the page offers.
    pub(crate) fn wants(&self) -> Option<i64> {
        self.page.shared.seen.lock().wants()
    }

    /// Waits until the page has changed.
    pub(crate) async fn change(&mut self) -> Result<(), Failure> {
        if !self.has_ended() {
            self.page.shared.changed.notified().await;
        }
        if self.has_ended() { Err("the socket has ended".into()) } else { Ok(()) }
    }

    fn cart(&self) -> Cart {
        self.page.shared.seen.lock().cart.clone()
    }

    /// Asks the channel of the cart.
    async fn ask(&mut self, event: &str, item: i64) -> Result<Value, Failure> {
        let topic = self.topic.clone();
        self.page.ask(&topic, event, json!({ "item_id": item })).await
    }

    /// Puts an item into the cart.
    pub(crate) async fn add(&mut self, item: i64) -> Result<(), Failure> {
        self.ask("add_item", item).await.map(|_| ())
    }

    /// Puts an item into the cart and buys it. Returns whether there was one.
    pub(crate) async fn buy(&mut self, item: i64) -> Result<bool, Failure> {
        if let Err(error) = self.add(item).await {
            // What cannot be added is no failure. It is gone, or in the cart already, because an earlier answer was lost.
            let is_refused = error.to_string().contains("\"error\"");
            return if is_refused { self.clear(&[item]).await.map(|()| false) } else { Err(error) };
        }
        let signed = self.cart().serialized.unwrap_or_default();
        let key = fastrand::u64(..);
        let form = format!("serialized_cart={signed}&csrf_token={}&key={key}", self.csrf);
        let head = self.post(&form).await?;
        if head.contains("/checkout/complete") {
            return Ok(true);
        }
        self.clear(&[item]).await?;
        if head.contains(" 409 ") { Ok(false) } else { Err(head.into()) }
    }

    /// Removes these items from the cart, and those that are gone, as a shopper does who looks for others.
    pub(crate) async fn clear(&mut self, items: &[i64]) -> Result<(), Failure> {
        let cart = self.cart();
        for item in cart.items.iter().filter(|it| cart.gone.contains(it) || items.contains(it)) {
            match self.ask("remove_item", *item).await {
                // A tab that has bought it hears that it is out of the cart, and may hear it after this was asked.
                Err(error) if !error.to_string().contains("not_found") => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends the form until it has an answer, as a person does: a node may end meanwhile, or have too much to do. The key in
    /// it buys once.
    async fn post(&self, form: &str) -> Result<String, Failure> {
        let began = Instant::now();
        loop {
            let asked = request(&self.address, "POST", "/checkout", &[&self.cookie], form).await;
            let why = match asked {
                Ok((head, _)) if !head.contains(" 503 ") => return Ok(head),
                Ok(_) => "the node can sell nothing just now".to_owned(),
                Err(error) => error.to_string(),
            };
            if began.elapsed() > GIVES_UP {
                return Err(why.into());
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

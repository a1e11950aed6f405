//! What each service of the shop answers. Every answer lists under `served_by` who had a part in it, this
//! service first.

use std::{fs::OpenOptions, io::Write, path::PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{HeaderMap, Method, Request, Response, StatusCode, body::Incoming, header};
use serde_json::{Map, Value, json};

use super::{
    Hop, Part,
    calls::{Call, Calls, Heard},
    ticks::Answer,
};

const BODY_LIMIT_BYTES: usize = 1 << 20;
const ID_LIMIT_BYTES: usize = 200;
/// Passed on beside everything that begins with `x-`: W3C trace context and baggage, B3.
const TRACING_HEADERS: [&str; 4] = ["traceparent", "tracestate", "baggage", "b3"];

/// One service.
pub(super) struct Shop {
    hop: Hop,
    calls: Calls,
    orders: PathBuf,
}

/// A request, its body read.
struct Asked {
    method: Method,
    /// With query.
    target: String,
    /// What is passed on to others.
    headers: HeaderMap,
    body: Bytes,
}

/// A status and what is said with it.
type Said = (StatusCode, Value);

impl Shop {
    pub(super) fn new(hop: Hop, calls: Calls, orders: PathBuf) -> Self {
        Shop { hop, calls, orders }
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        if request.uri().path() == "/ticks" {
            return Response::new(Answer::ticks());
        }
        let said = match Asked::read(request).await {
            Ok(asked) => self.handle(asked).await,
            Err(refused) => refused,
        };
        self.respond(said)
    }

    async fn handle(&self, asked: Asked) -> Said {
        let path = asked.target.split('?').next().unwrap_or_default();
        let first = path.split('/').nth(1).unwrap_or_default();
        match (self.hop.service, first) {
            (_, "healthz") => (StatusCode::OK, json!({ "ok": true })),
            (Part::Front, "") => self.page(&asked).await,
            (Part::Front, "catalogue" | "orders") => self.pass_on(Part::Catalogue, &asked).await,
            (Part::Front, "reviews") => self.pass_on(Part::Reviews, &asked).await,
            (Part::Front, "ratings") => self.pass_on(Part::Ratings, &asked).await,
            (Part::Front, _) => (
                StatusCode::NOT_FOUND,
                json!({ "error": "try /, /catalogue, /reviews, /ratings, POST /orders" }),
            ),
            (Part::Catalogue, "orders") => self.order(&asked),
            (Part::Catalogue, _) => (StatusCode::OK, json!({ "books": books() })),
            (Part::Reviews, _) => self.reviews(&asked).await,
            (Part::Ratings, _) => (StatusCode::OK, json!({ "stars": { "weaving": 5, "looms": 4 } })),
        }
    }

    /// The front page: the data of all services, or the word of the first that failed.
    async fn page(&self, asked: &Asked) -> Said {
        let (catalogue, reviews) = tokio::join!(
            self.need(Part::Catalogue, "/catalogue", asked),
            self.need(Part::Reviews, "/reviews", asked)
        );
        let (mut catalogue, mut reviews) = match (catalogue, reviews) {
            (Ok(catalogue), Ok(reviews)) => (catalogue, reviews),
            (Err(failed), _) | (_, Err(failed)) => return failed,
        };
        let mut hops = take_hops(&mut catalogue);
        hops.extend(take_hops(&mut reviews));
        let ratings = reviews.remove("ratings").unwrap_or_default();
        let page = json!({
            "title": "The shop",
            "catalogue": catalogue,
            "reviews": reviews,
            "ratings": ratings,
            "served_by": hops,
        });
        (StatusCode::OK, page)
    }

    /// What readers say; the stars come from ratings.
    async fn reviews(&self, asked: &Asked) -> Said {
        let mut ratings = match self.need(Part::Ratings, "/ratings", asked).await {
            Ok(ratings) => ratings,
            Err(failed) => return failed,
        };
        let hops = take_hops(&mut ratings);
        let reviews = json!([
            { "book": "weaving", "reader": "ada", "says": "every thread where it belongs" },
            { "book": "looms", "reader": "joseph", "says": "needs more cards" },
        ]);
        (StatusCode::OK, json!({ "reviews": reviews, "ratings": ratings, "served_by": hops }))
    }

    /// Writes the id down before it answers.
    fn order(&self, asked: &Asked) -> Said {
        if asked.method != Method::POST {
            return (StatusCode::METHOD_NOT_ALLOWED, json!({ "error": "orders are placed with POST" }));
        }
        let Some(id) = order_id(&asked.body) else {
            return (
                StatusCode::BAD_REQUEST,
                json!({ "error": "an order is {\"id\": \"...\"}, a short text or a number" }),
            );
        };
        let mut file = match OpenOptions::new().create(true).append(true).open(&self.orders) {
            Ok(file) => file,
            Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": error.to_string() })),
        };
        match file.write_all(format!("{id}\n").as_bytes()) {
            Ok(()) => (StatusCode::OK, json!({ "ordered": id })),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": error.to_string() })),
        }
    }

    /// Calls a service with the request as it came, and passes on its status and body.
    async fn pass_on(&self, to: Part, asked: &Asked) -> Said {
        let call = Call {
            method: asked.method.clone(),
            to,
            path: &asked.target,
            headers: asked.headers.clone(),
            body: asked.body.clone(),
        };
        match self.calls.call(call).await {
            Ok(heard) => (heard.status, object(&heard)),
            Err(why) => (StatusCode::BAD_GATEWAY, failure(to, None, &why)),
        }
    }

    /// The data of a service that the answer cannot do without; otherwise which one failed, with its status.
    async fn need(&self, to: Part, path: &str, asked: &Asked) -> Result<Map<String, Value>, Said> {
        let mut headers = asked.headers.clone();
        headers.remove(header::CONTENT_TYPE);
        let call = Call { method: Method::GET, to, path, headers, body: Bytes::new() };
        match self.calls.call(call).await {
            Ok(heard) if heard.status == StatusCode::OK => match object(&heard) {
                Value::Object(map) => Ok(map),
                _ => Ok(Map::new()),
            },
            Ok(heard) => {
                let status = match heard.status {
                    status if status.is_client_error() || status.is_server_error() => status,
                    _ => StatusCode::BAD_GATEWAY,
                };
                Err((status, failure(to, Some(heard.status), &object(&heard))))
            }
            Err(why) => Err((StatusCode::BAD_GATEWAY, failure(to, None, &why))),
        }
    }

    /// JSON with this service at the head of `served_by`.
    fn respond(&self, (status, mut said): Said) -> Response<Answer> {
        if let Value::Object(map) = &mut said {
            let mut hops = vec![json!(self.hop)];
            hops.extend(take_hops(map));
            map.insert("served_by".into(), Value::Array(hops));
        }
        let body = Bytes::from(said.to_string());
        let mut response = Response::new(Answer::Whole(Some(body)));
        *response.status_mut() = status;
        let json = header::HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}

impl Asked {
    async fn read(request: Request<Incoming>) -> Result<Self, Said> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_LIMIT_BYTES).collect().await.map_err(|error| {
            (StatusCode::PAYLOAD_TOO_LARGE, json!({ "error": format!("cannot read the body: {error}") }))
        })?;
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Asked {
            method: head.method,
            target: target.to_owned(),
            headers: passed_on(&head.headers),
            body: body.to_bytes(),
        })
    }
}

fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let pass =
        |name: &str| name.starts_with("x-") || name == "content-type" || TRACING_HEADERS.contains(&name);
    let passed = headers.iter().filter(|(name, _)| pass(name.as_str()));
    passed.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The id of `{"id": ...}`, fit to stand on a line of its own.
fn order_id(body: &[u8]) -> Option<String> {
    let order: Value = serde_json::from_slice(body).ok()?;
    let id = match &order["id"] {
        Value::String(id) => id.clone(),
        Value::Number(id) => id.to_string(),
        _ => return None,
    };
    let fit = (1..=ID_LIMIT_BYTES).contains(&id.len()) && !id.contains(char::is_control);
    fit.then_some(id)
}

/// An answer's body as a JSON object, whatever it was.
fn object(heard: &Heard) -> Value {
    match serde_json::from_slice(&heard.body) {
        Ok(Value::Object(map)) => Value::Object(map),
        Ok(value) => json!({ "answer": value }),
        Err(_) => {
            let mut object = json!({ "answer": String::from_utf8_lossy(&heard.body) });
            if let Some(decision) = heard.headers.get("weft-decision").and_then(|value| value.to_str().ok()) {
                object["decision"] = decision.into();
            }
            object
        }
    }
}

fn failure(of: Part, status: Option<StatusCode>, why: &impl serde::Serialize) -> Value {
    let said = status.map_or("did not answer".to_owned(), |status| format!("answered {}", status.as_u16()));
    json!({
        "error": format!("{} {said}", of.name()),
        "failed": of,
        "status": status.map(|status| status.as_u16()),
        "why": why,
    })
}

fn take_hops(map: &mut Map<String, Value>) -> Vec<Value> {
    match map.remove("served_by") {
        Some(Value::Array(hops)) => hops,
        _ => Vec::new(),
    }
}

fn books() -> Value {
    json!([
        { "id": "weaving", "title": "On weaving", "price": 24 },
        { "id": "looms", "title": "Looms and their makers", "price": 31 },
    ])
}

#[cfg(test)]
mod tests;

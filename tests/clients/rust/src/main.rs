//! The tour of async-nats. The steps: see ../../README.md.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, context::PublishErrorKind, message::PublishMessage, publish::PublishAck};
use async_nats::{Client, ConnectOptions, HeaderMap, Message, Subscriber};
use futures_util::StreamExt;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(10);
const MAX_PAYLOAD_BYTES: usize = 1024 * 1024;

const CORE: &[&str] = &[
    "connect",
    "publish-subscribe",
    "wildcard-token",
    "wildcard-tail",
    "queue-group",
    "request-reply",
    "no-responders",
    "headers",
    "headers-multi",
    "echo-off",
    "unsubscribe-max",
    "flush-rtt",
    "drain",
    "payload-max",
    "payload-too-large",
];
const LOG: &[&str] = &["puback", "duplicate", "wrong-stream", "wrong-sequence", "fetch", "out-of-range"];

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn expect<T: PartialEq + Debug>(actual: T, wanted: T, what: &str) -> Outcome {
    if actual == wanted {
        return Ok(());
    }
    Err(format!("{what}: wanted {wanted:?}, got {actual:?}").into())
}

async fn next(subscriber: &mut Subscriber) -> Outcome<Message> {
    Ok(timeout(PATIENCE, subscriber.next()).await?.ok_or("the subscription has ended")?)
}

/// Waits until the server has handled all that this connection has sent: `flush` of this client only writes.
async fn settle(client: &Client) -> Outcome {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await?;
    client.publish(inbox, "settled".into()).await?;
    next(&mut echo).await?;
    Ok(())
}

async fn subscribe(client: &Client, subject: &str) -> Outcome<Subscriber> {
    let subscriber = client.subscribe(subject.to_string()).await?;
    settle(client).await?;
    Ok(subscriber)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.as_str())
}

/// Every message that has come in already, without waiting.
async fn at_hand(subscriber: &mut Subscriber) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Ok(Some(message)) = timeout(Duration::ZERO, subscriber.next()).await {
        messages.push(message);
    }
    messages
}

/// A connection under test, a second one that stands for everybody else, and what the log steps remember.
struct Tour {
    url: String,
    client: Client,
    other: Client,
    js: jetstream::Context,
    tag: String,
    first_offset: u64,
    published: Vec<String>,
}

impl Tour {
    async fn open(url: &str) -> Outcome<Tour> {
        let client = async_nats::connect(url).await?;
        Ok(Tour {
            url: url.to_string(),
            other: async_nats::connect(url).await?,
            js: jetstream::new(client.clone()),
            tag: client.new_inbox().replace("_INBOX.", ""),
            client,
            first_offset: 0,
            published: Vec::new(),
        })
    }

    async fn run(&mut self, step: &str) -> Outcome {
        match step {
            "connect" => self.connect().await,
            "publish-subscribe" => self.publish_subscribe().await,
            "wildcard-token" => self.wildcard_token().await,
            "wildcard-tail" => self.wildcard_tail().await,
            "queue-group" => self.queue_group().await,
            "request-reply" => self.request_reply().await,
            "no-responders" => self.no_responders().await,
            "headers" => self.headers().await,
            "headers-multi" => self.headers_multi().await,
            "echo-off" => self.echo_off().await,
            "unsubscribe-max" => self.unsubscribe_max().await,
            "flush-rtt" => self.flush_rtt().await,
            "drain" => self.drain().await,
            "payload-max" => self.payload_max().await,
            "payload-too-large" => self.payload_too_large().await,
            "puback" => self.puback().await,
            "duplicate" => self.duplicate().await,
            "wrong-stream" => self.wrong_stream().await,
            "wrong-sequence" => self.wrong_sequence().await,
            "fetch" => self.fetch().await,
            "out-of-range" => self.out_of_range().await,
            unknown => Err(format!("there is no step {unknown}").into()),
        }
    }

    async fn publish(&self, subject: &str, payload: &str) -> Outcome {
        Ok(self.other.publish(subject.to_string(), payload.to_string().into()).await?)
    }

    async fn connect(&mut self) -> Outcome {
        expect(self.client.server_info().max_payload, MAX_PAYLOAD_BYTES, "max_payload")
    }

    async fn publish_subscribe(&mut self) -> Outcome {
        let mut subscriber = subscribe(&self.client, "tour.hello").await?;
        let payloads: [&[u8]; 3] = [b"one", b"", b"\x00\r\n\xff"];
        for payload in payloads {
            self.other.publish("tour.hello", payload.to_vec().into()).await?;
        }
        for payload in payloads {
            expect(&next(&mut subscriber).await?.payload[..], payload, "payload")?;
        }
        Ok(())
    }

    async fn matched(&self, pattern: &str, published: &[&str], wanted: &[&str]) -> Outcome {
        let mut subscriber = subscribe(&self.client, pattern).await?;
        for subject in published {
            self.publish(subject, subject).await?;
        }
        for subject in wanted {
            let message = next(&mut subscriber).await?;
            expect(message.subject.as_str(), *subject, "subject")?;
            expect(&message.payload[..], subject.as_bytes(), "payload")?;
        }
        Ok(())
    }

    async fn wildcard_token(&mut self) -> Outcome {
        let wanted = ["tour.star.a.end", "tour.star.last.end"];
        let published = [wanted[0], "tour.star.a.b.end", "tour.star.a.other", "tour.star.end", wanted[1]];
        self.matched("tour.star.*.end", &published, &wanted).await
    }

    async fn wildcard_tail(&mut self) -> Outcome {
        let wanted = ["tour.tail.a", "tour.tail.a.b.c", "tour.tail.last"];
        let published = ["tour.tail", wanted[0], "tour.other.a", wanted[1], wanted[2]];
        self.matched("tour.tail.>", &published, &wanted).await
    }

    async fn queue_group(&mut self) -> Outcome {
        let mut members = Vec::new();
        for _ in 0..3 {
            let client = async_nats::connect(&self.url).await?;
            let subscriber = client.queue_subscribe("tour.work", "workers".to_string()).await?;
            settle(&client).await?;
            members.push((client, subscriber));
        }
        for number in 0..100 {
            self.publish("tour.work", &number.to_string()).await?;
        }
        settle(&self.other).await?;
        let mut done: BTreeMap<usize, usize> = BTreeMap::new();
        for (client, subscriber) in &mut members {
            settle(client).await?;
            let share = at_hand(subscriber).await;
            expect(share.is_empty(), false, "a member got nothing")?;
            for message in share {
                *done.entry(std::str::from_utf8(&message.payload)?.parse()?).or_default() += 1;
            }
        }
        expect(done, (0..100).map(|number| (number, 1)).collect(), "work done")
    }

    async fn request_reply(&mut self) -> Outcome {
        let mut service = subscribe(&self.other, "tour.service").await?;
        for question in ["a", "b", "c"] {
            let asked = self.client.request("tour.service", question.into());
            let answered = async {
                let request = next(&mut service).await?;
                let answer = [b"pong:", &request.payload[..]].concat();
                let inbox = request.reply.ok_or("a request without a reply subject")?;
                self.other.publish(inbox, answer.into()).await?;
                Outcome::Ok(())
            };
            let (reply, answered) = tokio::join!(asked, answered);
            answered?;
            expect(&reply?.payload[..], format!("pong:{question}").as_bytes(), "answer")?;
        }
        Ok(())
    }

    async fn no_responders(&mut self) -> Outcome {
        match self.client.request("tour.nobody", "?".into()).await {
            Err(error) => expect(error.kind(), async_nats::RequestErrorKind::NoResponders, "kind of error"),
            Ok(reply) => Err(format!("wanted no responders, got {reply:?}").into()),
        }
    }

    async fn headers_return(&self, headers: HeaderMap) -> Outcome {
        let mut subscriber = subscribe(&self.client, "tour.headers").await?;
        self.other.publish_with_headers("tour.headers", headers.clone(), "with".into()).await?;
        let message = next(&mut subscriber).await?;
        expect(message.headers, Some(headers), "headers")?;
        expect(&message.payload[..], b"with", "payload")
    }

    async fn headers(&mut self) -> Outcome {
        let mut headers = HeaderMap::new();
        headers.insert("Trace-Id", "Abc: 1, 2");
        headers.insert("trace-id", "lower");
        self.headers_return(headers).await
    }

    async fn headers_multi(&mut self) -> Outcome {
        let mut headers = HeaderMap::new();
        headers.append("Tag", "one");
        headers.append("Tag", "two");
        headers.insert("Other", "x");
        self.headers_return(headers).await
    }

    async fn echo_off(&mut self) -> Outcome {
        let silent = ConnectOptions::new().no_echo().connect(&self.url).await?;
        let mut subscriber = silent.subscribe("tour.echo").await?;
        silent.publish("tour.echo", "own".into()).await?;
        // What the other side has received shows that the server is done with all that went before it.
        let mut mark = subscribe(&self.other, "tour.mark").await?;
        silent.publish("tour.mark", "".into()).await?;
        next(&mut mark).await?;
        self.publish("tour.echo", "foreign").await?;
        expect(&next(&mut subscriber).await?.payload[..], b"foreign", "first message")
    }

    async fn unsubscribe_max(&mut self) -> Outcome {
        let mut limited = self.client.subscribe("tour.max").await?;
        limited.unsubscribe_after(3).await?;
        let mut after = subscribe(&self.client, "tour.max").await?;
        for number in 0..5 {
            self.publish("tour.max", &number.to_string()).await?;
        }
        for number in 0..5 {
            expect(&next(&mut after).await?.payload[..], number.to_string().as_bytes(), "payload")?;
        }
        for number in 0..3 {
            expect(&next(&mut limited).await?.payload[..], number.to_string().as_bytes(), "payload before the limit")?;
        }
        expect(timeout(PATIENCE, limited.next()).await?.is_none(), true, "the subscription ends at its limit")
    }

    async fn flush_rtt(&mut self) -> Outcome {
        let started = Instant::now();
        self.client.flush().await?;
        settle(&self.client).await?;
        expect(started.elapsed() < Duration::from_secs(5), true, "round trip below five seconds")
    }

    async fn drain(&mut self) -> Outcome {
        let leaving = async_nats::connect(&self.url).await?;
        let mut subscriber = subscribe(&leaving, "tour.drain").await?;
        for number in 0..500 {
            self.publish("tour.drain", &number.to_string()).await?;
        }
        settle(&self.other).await?;
        leaving.drain().await?;
        let mut seen = Vec::new();
        while let Some(message) = timeout(PATIENCE, subscriber.next()).await? {
            seen.push(std::str::from_utf8(&message.payload)?.parse()?);
        }
        expect(seen, (0..500).collect::<Vec<usize>>(), "messages handled")
    }

    async fn payload_max(&mut self) -> Outcome {
        let mut subscriber = subscribe(&self.client, "tour.large").await?;
        let payload = b"0123456789abcde\n".repeat(MAX_PAYLOAD_BYTES / 16);
        self.other.publish("tour.large", payload.clone().into()).await?;
        expect(next(&mut subscriber).await?.payload == payload, true, "payload is equal")
    }

    async fn payload_too_large(&mut self) -> Outcome {
        match self.client.publish("tour.large", vec![0; MAX_PAYLOAD_BYTES + 1].into()).await {
            Err(error) => {
                expect(error.kind(), async_nats::client::PublishErrorKind::MaxPayloadExceeded, "kind of error")
            }
            Ok(()) => Err("a payload above max_payload was accepted".into()),
        }
    }

    async fn keep(&self, message: PublishMessage) -> Result<PublishAck, jetstream::context::PublishError> {
        self.js.send_publish("orders.created", message).await?.await
    }

    async fn kept(&mut self, payload: &str, message: PublishMessage) -> Outcome<PublishAck> {
        let ack = self.keep(message.payload(payload.to_string().into())).await?;
        expect(ack.stream.as_str(), "orders", "stream")?;
        if !ack.duplicate {
            self.published.push(payload.to_string());
        }
        Ok(ack)
    }

    fn last_sequence(&self) -> u64 {
        self.first_offset + self.published.len() as u64
    }

    async fn puback(&mut self) -> Outcome {
        for number in 0..3 {
            let message = PublishMessage::build().header("Shop", format!("north {number}"));
            let ack = self.kept(&format!("{}-{number}", self.tag), message).await?;
            expect(ack.duplicate, false, "duplicate")?;
            if number == 0 {
                self.first_offset = ack.sequence - 1;
            }
            expect(ack.sequence, self.last_sequence(), "sequence")?;
        }
        Ok(())
    }

    async fn duplicate(&mut self) -> Outcome {
        let payload = format!("{}-once", self.tag);
        let message = PublishMessage::build().message_id(&self.tag);
        let first = self.kept(&payload, message.clone()).await?;
        let again = self.kept(&payload, message).await?;
        expect((first.duplicate, again.duplicate), (false, true), "duplicate")?;
        expect(again.sequence, first.sequence, "sequence of the duplicate")
    }

    async fn wrong_stream(&mut self) -> Outcome {
        let message = PublishMessage::build().payload("no".into()).expected_stream("invoices");
        let Err(error) = self.keep(message).await else {
            return Err("the wrong stream was accepted".into());
        };
        let cause = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
        let code = cause.map(|refusal| refusal.error_code());
        expect(code, Some(jetstream::ErrorCode::STREAM_NOT_MATCH), &format!("error code of {error}"))
    }

    async fn wrong_sequence(&mut self) -> Outcome {
        let last = self.last_sequence();
        let message = PublishMessage::build().payload("no".into()).expected_last_sequence(last + 1000);
        match self.keep(message).await {
            Err(error) => expect(error.kind(), PublishErrorKind::WrongLastSequence, "kind of error")?,
            Ok(ack) => return Err(format!("the wrong sequence was accepted: {ack:?}").into()),
        }
        let message = PublishMessage::build().expected_last_sequence(last);
        let ack = self.kept(&format!("{}-expected", self.tag), message).await?;
        expect(ack.sequence, last + 1, "sequence")
    }

    async fn ask(&self, offset: u64) -> Outcome<Subscriber> {
        let inbox = self.client.new_inbox();
        let answers = self.client.subscribe(inbox.clone()).await?;
        let request = format!(r#"{{"offset":{offset},"max_records":10}}"#);
        self.client.publish_with_reply("$LOG.FETCH.orders.0", inbox, request.into()).await?;
        Ok(answers)
    }

    async fn fetch(&mut self) -> Outcome {
        let mut answers = self.ask(self.first_offset).await?;
        for (index, payload) in self.published.iter().enumerate() {
            let message = next(&mut answers).await?;
            expect(&message.payload[..], payload.as_bytes(), "payload")?;
            let headers = message.headers.ok_or("a record without headers")?;
            expect(header(&headers, "Log-Stream"), "orders", "Log-Stream")?;
            expect(header(&headers, "Log-Partition"), "0", "Log-Partition")?;
            expect(header(&headers, "Log-Offset").parse()?, self.first_offset + index as u64, "Log-Offset")?;
            expect(header(&headers, "Nats-Subject"), "orders.created", "Nats-Subject")?;
            expect(header(&headers, "Log-Zone").is_empty(), false, "Log-Zone is missing")?;
            expect(header(&headers, "Log-Timestamp").parse::<u64>()? > 0, true, "Log-Timestamp is there")?;
            if index < 3 {
                expect(header(&headers, "Shop"), &format!("north {index}"), "the publisher's own header")?;
            }
        }
        let end = next(&mut answers).await?;
        expect(end.status.map(|status| status.as_u16()), Some(204), "status")?;
        expect(end.description.as_deref(), Some("EOB"), "description")?;
        let headers = end.headers.ok_or("an end without headers")?;
        expect(header(&headers, "Log-Next-Offset").parse()?, self.last_sequence(), "Log-Next-Offset")?;
        expect(header(&headers, "Log-High-Watermark").parse()?, self.last_sequence(), "Log-High-Watermark")?;
        expect(header(&headers, "Log-Start-Offset"), "0", "Log-Start-Offset")
    }

    async fn out_of_range(&mut self) -> Outcome {
        let mut answers = self.ask(self.first_offset + 1_000_000).await?;
        let message = next(&mut answers).await?;
        expect(message.status.map(|status| status.as_u16()), Some(416), "status")?;
        expect(message.description.as_deref(), Some("OFFSET_OUT_OF_RANGE"), "description")
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("the server's address is missing")?;
    let steps = match arguments.next().as_deref() {
        Some("core") => CORE,
        Some("log") => LOG,
        _ => return Err("the tour is missing: core or log".into()),
    };
    let mut tour = Tour::open(&url).await?;
    for step in steps {
        if let Err(error) = tour.run(step).await {
            eprintln!("FAILED {step}: {error}");
            std::process::exit(1);
        }
        println!("ok {step}");
    }
    Ok(())
}

// The tour of the JavaScript clients: `transport-node` (@nats-io/transport-node, @nats-io/jetstream) and the older `nats`.
// The steps: see ../README.md.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";

const PATIENCE_MS = 10_000;
const MAX_PAYLOAD_BYTES = 1024 * 1024;

// What differs between the two clients: how JetStream is reached, and how errors are told apart.
const LIBRARIES = {
  "transport-node": async () => {
    const { connect, createInbox, headers, NoRespondersError, RequestError } = await import(
      "@nats-io/transport-node"
    );
    const { jetstream, JetStreamApiError } = await import("@nats-io/jetstream");
    return {
      connect,
      createInbox,
      headers,
      jetstream,
      isNoResponders: (error) =>
        error instanceof NoRespondersError || (error instanceof RequestError && error.isNoResponders()),
      isTooLarge: (error) => error.message.includes("max_payload"),
      errorCode: (error) => (error instanceof JetStreamApiError ? error.apiError().err_code : error),
    };
  },
  nats: async () => {
    const { connect, createInbox, ErrorCode, headers } = await import("nats");
    return {
      connect,
      createInbox,
      headers,
      jetstream: (nc) => nc.jetstream(),
      isNoResponders: (error) => error.code === ErrorCode.NoResponders,
      isTooLarge: (error) => error.code === ErrorCode.MaxPayloadExceeded,
      errorCode: (error) => error.api_error?.err_code ?? error,
    };
  },
};

// A subscription whose messages are taken one by one.
class Mailbox {
  constructor(nc, subject, options = {}) {
    this.waiting = [];
    this.messages = [];
    this.subscription = nc.subscribe(subject, {
      ...options,
      callback: (error, message) => {
        const taker = this.waiting.shift();
        if (error) (taker ?? { reject: () => {} }).reject(error);
        else if (taker) taker.resolve(message);
        else this.messages.push(message);
      },
    });
  }

  static async open(nc, subject, options) {
    const mailbox = new Mailbox(nc, subject, options);
    await nc.flush();
    return mailbox;
  }

  next() {
    if (this.messages.length) return Promise.resolve(this.messages.shift());
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error("no message came in time")), PATIENCE_MS);
      const settled = (how) => (value) => {
        clearTimeout(timer);
        how(value);
      };
      this.waiting.push({ resolve: settled(resolve), reject: settled(reject) });
    });
  }

  async subjects(count) {
    const subjects = [];
    for (let index = 0; index < count; index++) subjects.push((await this.next()).subject);
    return subjects;
  }

  close() {
    this.subscription.unsubscribe();
  }
}

const numbers = (count) => Array.from({ length: count }, (_, number) => String(number));
const text = (message) => new TextDecoder().decode(message.data);

// A connection under test, a second one that stands for everybody else, and what the log steps remember.
class Tour {
  constructor(library, url, far = url) {
    Object.assign(this, { library, url, far, tag: randomBytes(6).toString("hex"), firstOffset: 0, published: [] });
  }

  connectTo(options = {}) {
    return this.library.connect({ servers: this.url, reconnect: false, ...options });
  }

  async open() {
    this.nc = await this.connectTo();
    this.other = await this.connectTo({ servers: this.far });
    this.js = this.library.jetstream(this.nc);
  }

  async close() {
    await this.nc?.close();
    await this.other?.close();
  }

  // Until what `nc` is subscribed to is known where `sender` is: a flush says so at one server or in one zone; to another
  // zone it takes a while, and what was subscribed to later is known later.
  async known(nc, sender) {
    if (this.far === this.url) return;
    const inbox = this.library.createInbox();
    const probes = await Mailbox.open(nc, inbox);
    for (const begun = Date.now(); !probes.messages.length; await new Promise((woken) => setTimeout(woken, 20))) {
      assert.ok(Date.now() - begun < PATIENCE_MS, "the other zone does not hear of subscriptions");
      sender.publish(inbox);
    }
    probes.close();
  }

  async connect() {
    assert.equal(this.nc.info.max_payload, MAX_PAYLOAD_BYTES);
  }

  async publishSubscribe() {
    const mailbox = await Mailbox.open(this.nc, "tour.hello");
    await this.known(this.nc, this.other);
    const payloads = [Uint8Array.from([111]), new Uint8Array(0), Uint8Array.from(Array(256).keys())];
    for (const payload of payloads) this.other.publish("tour.hello", payload);
    for (const payload of payloads) assert.deepEqual(new Uint8Array((await mailbox.next()).data), payload);
    mailbox.close();
  }

  async matched(pattern, published, wanted) {
    const mailbox = await Mailbox.open(this.nc, pattern);
    for (const subject of published) this.other.publish(subject, subject);
    assert.deepEqual(await mailbox.subjects(wanted.length), wanted);
    mailbox.close();
  }

  async wildcardToken() {
    const wanted = ["tour.star.a.end", "tour.star.last.end"];
    const strangers = ["tour.star.a.b.end", "tour.star.a.other", "tour.star.end"];
    await this.matched("tour.star.*.end", [wanted[0], ...strangers, wanted[1]], wanted);
  }

  async wildcardTail() {
    const wanted = ["tour.tail.a", "tour.tail.a.b.c", "tour.tail.last"];
    await this.matched("tour.tail.>", ["tour.tail", wanted[0], "tour.other.a", ...wanted.slice(1)], wanted);
  }

  async queueGroup() {
    const members = [];
    for (let index = 0; index < 3; index++) {
      const nc = await this.connectTo();
      members.push({ nc, mailbox: await Mailbox.open(nc, "tour.work", { queue: "workers" }) });
    }
    for (const number of numbers(100)) this.other.publish("tour.work", number);
    await this.other.flush();
    const done = [];
    for (const { nc, mailbox } of members) {
      await nc.flush();
      assert.ok(mailbox.messages.length > 0, "every member got some");
      done.push(...mailbox.messages.map(text));
      await nc.close();
    }
    assert.deepEqual(done.sort((one, two) => one - two), numbers(100));
  }

  async queueGroupOfZone() {
    const members = [];
    for (let index = 0; index < 3; index++) {
      members.push(await Mailbox.open(this.nc, "tour.zone.work", { queue: "workers" }));
    }
    const ends = await Mailbox.open(this.nc, "tour.zone.end");
    await this.known(this.nc, this.other);
    for (const number of numbers(100)) this.other.publish("tour.zone.work", number);
    this.other.publish("tour.zone.end");
    await ends.next(); // on one way with the others, so they are here
    const done = members.flatMap((member) => member.messages.map(text));
    assert.deepEqual(done.sort((one, two) => one - two), numbers(100));
  }

  async requestReply() {
    const service = this.other.subscribe("tour.service", {
      callback: (_, request) => request.respond(`pong:${text(request)}`),
    });
    await this.other.flush();
    await this.known(this.other, this.nc);
    for (const question of ["a", "b", "c"]) {
      const reply = await this.nc.request("tour.service", question, { timeout: PATIENCE_MS });
      assert.equal(text(reply), `pong:${question}`);
    }
    service.unsubscribe();
  }

  async noResponders() {
    await assert.rejects(this.nc.request("tour.nobody", "?", { timeout: PATIENCE_MS }), this.library.isNoResponders);
  }

  async headersReturn(pairs) {
    const mailbox = await Mailbox.open(this.nc, "tour.headers");
    await this.known(this.nc, this.other);
    const sent = this.library.headers();
    for (const [name, value] of pairs) sent.append(name, value);
    this.other.publish("tour.headers", "with", { headers: sent });
    const message = await mailbox.next();
    assert.equal(text(message), "with");
    const got = [...message.headers].flatMap(([name, values]) => values.map((value) => [name, value]));
    assert.deepEqual(got, pairs);
    mailbox.close();
  }

  async headers() {
    await this.headersReturn([["Trace-Id", "Abc: 1, 2"], ["trace-id", "lower"]]);
  }

  async headersMulti() {
    await this.headersReturn([["Tag", "one"], ["Tag", "two"], ["Other", "x"]]);
  }

  async echoOff() {
    const silent = await this.connectTo({ noEcho: true });
    const mailbox = await Mailbox.open(silent, "tour.echo");
    silent.publish("tour.echo", "own");
    await silent.flush();
    this.other.publish("tour.echo", "foreign");
    assert.equal(text(await mailbox.next()), "foreign");
    await silent.close();
  }

  async unsubscribeMax() {
    const limited = new Mailbox(this.nc, "tour.max", { max: 3 });
    const after = await Mailbox.open(this.nc, "tour.max");
    for (const number of numbers(5)) this.other.publish("tour.max", number);
    await after.subjects(5);
    assert.deepEqual(limited.messages.map(text), numbers(3));
    assert.ok(limited.subscription.isClosed());
    after.close();
  }

  async flushRtt() {
    await this.nc.flush();
    const roundTripMs = await this.nc.rtt();
    assert.ok(roundTripMs >= 0 && roundTripMs < 5000, `round trip of ${roundTripMs} ms`);
  }

  async drain() {
    const leaving = await this.connectTo();
    const mailbox = await Mailbox.open(leaving, "tour.drain");
    for (const number of numbers(500)) this.other.publish("tour.drain", number);
    await this.other.flush();
    await leaving.drain();
    assert.deepEqual(mailbox.messages.map(text), numbers(500));
    assert.ok(leaving.isClosed());
  }

  async verbosePedantic() {
    const careful = await this.connectTo({ verbose: true, pedantic: true });
    const mailbox = new Mailbox(careful, "tour.verbose");
    careful.publish("tour.verbose", "hello");
    assert.equal(text(await mailbox.next()), "hello");
    await careful.flush();
    await careful.close();
  }

  async payloadMax() {
    const mailbox = await Mailbox.open(this.nc, "tour.large");
    const payload = Buffer.alloc(MAX_PAYLOAD_BYTES, "0123456789abcde\n");
    this.other.publish("tour.large", payload);
    assert.ok(payload.equals((await mailbox.next()).data), "payload is equal");
    mailbox.close();
  }

  async payloadTooLarge() {
    const publish = () => this.nc.publish("tour.large", new Uint8Array(MAX_PAYLOAD_BYTES + 1));
    assert.throws(publish, this.library.isTooLarge);
  }

  async keep(payload, options = {}) {
    const ack = await this.js.publish("orders.created", payload, { timeout: PATIENCE_MS, ...options });
    assert.equal(ack.stream, "orders");
    if (!ack.duplicate) this.published.push(payload);
    return ack;
  }

  async refused(expectation) {
    const refusal = await this.js.publish("orders.created", "no", { expect: expectation }).then(
      (ack) => assert.fail(`accepted: ${JSON.stringify(ack)}`),
      (error) => error,
    );
    return this.library.errorCode(refusal);
  }

  lastSequence() {
    return this.firstOffset + this.published.length;
  }

  async puback() {
    for (const number of numbers(3)) {
      const headers = this.library.headers();
      headers.set("Shop", `north ${number}`);
      const ack = await this.keep(`${this.tag}-${number}`, { headers });
      assert.ok(!ack.duplicate);
      if (number === "0") this.firstOffset = ack.seq - 1;
      assert.equal(ack.seq, this.lastSequence());
    }
  }

  async duplicate() {
    const first = await this.keep(`${this.tag}-once`, { msgID: this.tag });
    const again = await this.keep(`${this.tag}-once`, { msgID: this.tag });
    assert.deepEqual([Boolean(first.duplicate), again.duplicate], [false, true]);
    assert.equal(again.seq, first.seq);
  }

  async wrongStream() {
    assert.equal(await this.refused({ streamName: "invoices" }), 10060);
  }

  async wrongSequence() {
    assert.equal(await this.refused({ lastSequence: this.lastSequence() + 1000 }), 10071);
    const last = this.lastSequence();
    const ack = await this.keep(`${this.tag}-expected`, { expect: { lastSequence: last } });
    assert.equal(ack.seq, last + 1);
  }

  ask(offset) {
    const reply = this.library.createInbox();
    const answers = new Mailbox(this.nc, reply);
    this.nc.publish("$LOG.FETCH.orders.0", JSON.stringify({ offset, max_records: 10 }), { reply });
    return answers;
  }

  async fetch() {
    const answers = this.ask(this.firstOffset);
    for (const [index, payload] of this.published.entries()) {
      const message = await answers.next();
      assert.equal(text(message), payload);
      const names = ["Log-Stream", "Log-Partition", "Log-Offset", "Nats-Subject"];
      const wanted = ["orders", "0", String(this.firstOffset + index), "orders.created"];
      assert.deepEqual(names.map((name) => message.headers.get(name)), wanted);
      assert.notEqual(message.headers.get("Log-Zone"), "");
      assert.ok(Number(message.headers.get("Log-Timestamp")) > 0, "Log-Timestamp is there");
      if (index < 3) assert.equal(message.headers.get("Shop"), `north ${index}`);
    }
    const end = (await answers.next()).headers;
    assert.deepEqual([end.code, end.description], [204, "EOB"]);
    assert.equal(end.get("Log-Next-Offset"), String(this.lastSequence()));
    assert.equal(end.get("Log-High-Watermark"), String(this.lastSequence()));
    assert.equal(end.get("Log-Start-Offset"), "0");
    answers.close();
  }

  async outOfRange() {
    const answers = this.ask(this.firstOffset + 1_000_000);
    const { code, description } = (await answers.next()).headers;
    assert.deepEqual([code, description], [416, "OFFSET_OUT_OF_RANGE"]);
    answers.close();
  }
}

const TOURS = {
  core: [
    ...["connect", "publish-subscribe", "wildcard-token", "wildcard-tail", "queue-group", "request-reply"],
    ...["no-responders", "headers", "headers-multi", "echo-off", "unsubscribe-max", "flush-rtt", "drain"],
    ...["verbose-pedantic", "payload-max", "payload-too-large"],
  ],
  log: ["puback", "duplicate", "wrong-stream", "wrong-sequence", "fetch", "out-of-range"],
  zones: ["publish-subscribe", "headers", "queue-group-of-zone", "request-reply"],
};
const methodOf = (step) => step.replace(/-(.)/g, (_, letter) => letter.toUpperCase());

const [libraryName, url, tourName, far] = process.argv.slice(2);
const tour = new Tour(await LIBRARIES[libraryName](), url, far);
let current = "open";
try {
  await tour.open();
  for (const step of TOURS[tourName]) {
    current = step;
    await tour[methodOf(step)]();
    console.log(`ok ${step}`);
  }
} catch (error) {
  console.error(`FAILED ${current}: ${error}`);
  process.exitCode = 1;
} finally {
  await tour.close();
}

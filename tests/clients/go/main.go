// The tour of nats.go. The steps: see ../README.md. With a second address, that is where everybody else is connected.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	patience        = 10 * time.Second
	maxPayloadBytes = 1024 * 1024
)

// tour holds a connection under test, a second one that stands for everybody else, and what the log steps remember.
type tour struct {
	url, far    string
	nc, other   *nats.Conn
	js          jetstream.JetStream
	tag         string
	firstOffset uint64
	published   []string
}

type step struct {
	name string
	run  func(*tour)
}

var tours = map[string][]step{
	"core": {
		{"connect", (*tour).connect},
		{"publish-subscribe", (*tour).publishSubscribe},
		{"wildcard-token", (*tour).wildcardToken},
		{"wildcard-tail", (*tour).wildcardTail},
		{"queue-group", (*tour).queueGroup},
		{"request-reply", (*tour).requestReply},
		{"no-responders", (*tour).noResponders},
		{"headers", (*tour).headers},
		{"headers-multi", (*tour).headersMulti},
		{"echo-off", (*tour).echoOff},
		{"unsubscribe-max", (*tour).unsubscribeMax},
		{"flush-rtt", (*tour).flushRTT},
		{"drain", (*tour).drain},
		{"verbose-pedantic", (*tour).verbosePedantic},
		{"payload-max", (*tour).payloadMax},
		{"payload-too-large", (*tour).payloadTooLarge},
	},
	"log": {
		{"puback", (*tour).puback},
		{"duplicate", (*tour).duplicate},
		{"wrong-stream", (*tour).wrongStream},
		{"wrong-sequence", (*tour).wrongSequence},
		{"fetch", (*tour).fetch},
		{"out-of-range", (*tour).outOfRange},
	},
	"zones": {
		{"publish-subscribe", (*tour).publishSubscribe},
		{"headers", (*tour).headers},
		{"queue-group-of-zone", (*tour).queueGroupOfZone},
		{"request-reply", (*tour).requestReply},
	},
}

// failure is what a step panics with; any other panic is a mistake in this program.
type failure struct{ error }

func must(err error, what string) {
	if err != nil {
		panic(failure{fmt.Errorf("%s: %w", what, err)})
	}
}

func expect(actual, wanted any, what string) {
	if !reflect.DeepEqual(actual, wanted) {
		panic(failure{fmt.Errorf("%s: wanted %v, got %v", what, wanted, actual)})
	}
}

func (t *tour) dial(options ...nats.Option) *nats.Conn { return connectTo(t.url, options...) }

func connectTo(url string, options ...nats.Option) *nats.Conn {
	nc, err := nats.Connect(url, append(options, nats.NoReconnect())...)
	must(err, "connect")
	return nc
}

// known returns when what nc is subscribed to is known where `sender` is: a flush says so at one server or in one zone;
// to another zone it takes a while, and what was subscribed to later is known later.
func (t *tour) known(nc, sender *nats.Conn) {
	if t.far == t.url {
		return
	}
	inbox := nc.NewInbox()
	probes := subscribe(nc, inbox)
	for begun := time.Now(); time.Since(begun) < patience; {
		must(sender.Publish(inbox, nil), "publish")
		if _, err := probes.NextMsg(20 * time.Millisecond); err == nil {
			must(probes.Unsubscribe(), "unsubscribe")
			return
		}
	}
	panic(failure{errors.New("the other zone does not hear of subscriptions")})
}

func subscribe(nc *nats.Conn, subject string) *nats.Subscription {
	subscription, err := nc.SubscribeSync(subject)
	must(err, "subscribe")
	must(nc.Flush(), "flush")
	return subscription
}

func (t *tour) publish(subject, payload string) {
	must(t.other.Publish(subject, []byte(payload)), "publish")
}

func next(subscription *nats.Subscription) *nats.Msg {
	message, err := subscription.NextMsg(patience)
	must(err, "next message")
	return message
}

func numbers(count int) []string {
	all := make([]string, count)
	for number := range all {
		all[number] = strconv.Itoa(number)
	}
	return all
}

func (t *tour) connect() {
	expect(t.nc.IsConnected(), true, "connected")
	expect(t.nc.MaxPayload(), int64(maxPayloadBytes), "max_payload")
}

func (t *tour) publishSubscribe() {
	subscription := subscribe(t.nc, "tour.hello")
	t.known(t.nc, t.other)
	payloads := []string{"one", "", "\x00\r\n\xff"}
	for _, payload := range payloads {
		t.publish("tour.hello", payload)
	}
	for _, payload := range payloads {
		expect(string(next(subscription).Data), payload, "payload")
	}
	must(subscription.Unsubscribe(), "unsubscribe")
}

func (t *tour) matched(pattern string, published, wanted []string) {
	subscription := subscribe(t.nc, pattern)
	for _, subject := range published {
		t.publish(subject, subject)
	}
	for _, subject := range wanted {
		message := next(subscription)
		expect(message.Subject, subject, "subject matched by "+pattern)
		expect(string(message.Data), subject, "payload matched by "+pattern)
	}
	must(subscription.Unsubscribe(), "unsubscribe")
}

func (t *tour) wildcardToken() {
	t.matched("tour.star.*.end",
		[]string{"tour.star.a.end", "tour.star.a.b.end", "tour.star.a.other", "tour.star.end", "tour.star.last.end"},
		[]string{"tour.star.a.end", "tour.star.last.end"})
}

func (t *tour) wildcardTail() {
	t.matched("tour.tail.>",
		[]string{"tour.tail", "tour.tail.a", "tour.other.a", "tour.tail.a.b.c", "tour.tail.last"},
		[]string{"tour.tail.a", "tour.tail.a.b.c", "tour.tail.last"})
}

func (t *tour) queueGroup() {
	var members []*nats.Subscription
	var connections []*nats.Conn
	for range 3 {
		nc := t.dial()
		defer nc.Close()
		subscription, err := nc.QueueSubscribeSync("tour.work", "workers")
		must(err, "queue subscribe")
		must(nc.Flush(), "flush")
		members, connections = append(members, subscription), append(connections, nc)
	}
	for _, number := range numbers(100) {
		t.publish("tour.work", number)
	}
	must(t.other.Flush(), "flush")
	done := map[string]int{}
	for index, subscription := range members {
		must(connections[index].Flush(), "flush")
		share, _, err := subscription.Pending()
		must(err, "pending")
		expect(share > 0, true, "every member got some")
		for range share {
			done[string(next(subscription).Data)]++
		}
	}
	wanted := map[string]int{}
	for _, number := range numbers(100) {
		wanted[number] = 1
	}
	expect(done, wanted, "work done")
}

func (t *tour) queueGroupOfZone() {
	work := make(chan *nats.Msg, 200)
	for range 3 {
		_, err := t.nc.ChanQueueSubscribe("tour.zone.work", "workers", work)
		must(err, "queue subscribe")
	}
	ends := subscribe(t.nc, "tour.zone.end")
	t.known(t.nc, t.other)
	for _, number := range numbers(100) {
		t.publish("tour.zone.work", number)
	}
	t.publish("tour.zone.end", "")
	next(ends) // on one way with the others, so they are here
	must(t.nc.Flush(), "flush")
	done := map[string]int{}
	for len(work) > 0 {
		done[string((<-work).Data)]++
	}
	wanted := map[string]int{}
	for _, number := range numbers(100) {
		wanted[number] = 1
	}
	expect(done, wanted, "work done")
}

func (t *tour) requestReply() {
	service, err := t.other.Subscribe("tour.service", func(message *nats.Msg) {
		_ = message.Respond(append([]byte("pong:"), message.Data...)) // the asker sees a missing answer
	})
	must(err, "subscribe")
	must(t.other.Flush(), "flush")
	t.known(t.other, t.nc)
	for _, question := range []string{"a", "b", "c"} {
		reply, err := t.nc.Request("tour.service", []byte(question), patience)
		must(err, "request")
		expect(string(reply.Data), "pong:"+question, "answer")
	}
	must(service.Unsubscribe(), "unsubscribe")
}

func (t *tour) noResponders() {
	_, err := t.nc.Request("tour.nobody", []byte("?"), patience)
	expect(errors.Is(err, nats.ErrNoResponders), true, fmt.Sprintf("no responders (%v)", err))
}

func (t *tour) headersReturn(headers nats.Header) {
	subscription := subscribe(t.nc, "tour.headers")
	t.known(t.nc, t.other)
	must(t.other.PublishMsg(&nats.Msg{Subject: "tour.headers", Header: headers, Data: []byte("with")}), "publish")
	message := next(subscription)
	expect(message.Header, headers, "headers")
	expect(string(message.Data), "with", "payload")
	must(subscription.Unsubscribe(), "unsubscribe")
}

func (t *tour) headers() {
	t.headersReturn(nats.Header{"Trace-Id": {"Abc: 1, 2"}, "trace-id": {"lower"}})
}

func (t *tour) headersMulti() {
	t.headersReturn(nats.Header{"Tag": {"one", "two"}, "Other": {"x"}})
}

func (t *tour) echoOff() {
	silent := t.dial(nats.NoEcho())
	defer silent.Close()
	subscription := subscribe(silent, "tour.echo")
	must(silent.Publish("tour.echo", []byte("own")), "publish")
	must(silent.Flush(), "flush")
	t.publish("tour.echo", "foreign")
	expect(string(next(subscription).Data), "foreign", "first message")
}

func (t *tour) unsubscribeMax() {
	limited := subscribe(t.nc, "tour.max")
	must(limited.AutoUnsubscribe(3), "auto unsubscribe")
	after := subscribe(t.nc, "tour.max")
	for _, number := range numbers(5) {
		t.publish("tour.max", number)
	}
	for _, number := range numbers(5) {
		expect(string(next(after).Data), number, "payload")
	}
	for _, number := range numbers(3) {
		expect(string(next(limited).Data), number, "payload before the limit")
	}
	_, err := limited.NextMsg(time.Millisecond)
	expect(errors.Is(err, nats.ErrMaxMessages), true, fmt.Sprintf("the limit is reached (%v)", err))
	must(after.Unsubscribe(), "unsubscribe")
}

func (t *tour) flushRTT() {
	must(t.nc.FlushTimeout(patience), "flush")
	roundTrip, err := t.nc.RTT()
	must(err, "round trip")
	expect(roundTrip > 0 && roundTrip < 5*time.Second, true, "round trip below five seconds")
}

func (t *tour) drain() {
	var seen []string
	closed := make(chan struct{})
	leaving := t.dial(nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
	_, err := leaving.Subscribe("tour.drain", func(message *nats.Msg) { seen = append(seen, string(message.Data)) })
	must(err, "subscribe")
	must(leaving.Flush(), "flush")
	for _, number := range numbers(500) {
		t.publish("tour.drain", number)
	}
	must(t.other.Flush(), "flush")
	must(leaving.Drain(), "drain")
	select {
	case <-closed:
	case <-time.After(patience):
		panic(failure{errors.New("draining did not end")})
	}
	expect(seen, numbers(500), "messages handled")
}

func (t *tour) verbosePedantic() {
	careful := t.dial(func(options *nats.Options) error {
		options.Verbose, options.Pedantic = true, true
		return nil
	})
	defer careful.Close()
	subscription := subscribe(careful, "tour.verbose")
	must(careful.Publish("tour.verbose", []byte("hello")), "publish")
	expect(string(next(subscription).Data), "hello", "payload")
	must(careful.Flush(), "flush")
}

func (t *tour) payloadMax() {
	subscription := subscribe(t.nc, "tour.large")
	payload := bytes.Repeat([]byte("0123456789abcde\n"), maxPayloadBytes/16)
	must(t.other.Publish("tour.large", payload), "publish")
	expect(bytes.Equal(next(subscription).Data, payload), true, "payload is equal")
	must(subscription.Unsubscribe(), "unsubscribe")
}

func (t *tour) payloadTooLarge() {
	err := t.nc.Publish("tour.large", make([]byte, maxPayloadBytes+1))
	expect(errors.Is(err, nats.ErrMaxPayload), true, fmt.Sprintf("refused (%v)", err))
}

func (t *tour) keep(payload string, headers nats.Header, options ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	within, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	message := &nats.Msg{Subject: "orders.created", Header: headers, Data: []byte(payload)}
	return t.js.PublishMsg(within, message, options...)
}

func (t *tour) kept(payload string, headers nats.Header, options ...jetstream.PublishOpt) *jetstream.PubAck {
	ack, err := t.keep(payload, headers, options...)
	must(err, "publish")
	expect(ack.Stream, "orders", "stream")
	if !ack.Duplicate {
		t.published = append(t.published, payload)
	}
	return ack
}

func (t *tour) refused(option jetstream.PublishOpt, code jetstream.ErrorCode) {
	_, err := t.keep("no", nil, option)
	var refusal *jetstream.APIError
	expect(errors.As(err, &refusal), true, fmt.Sprintf("refused with an API error (%v)", err))
	expect(refusal.ErrorCode, code, "error code")
}

func (t *tour) lastSequence() uint64 { return t.firstOffset + uint64(len(t.published)) }

func (t *tour) puback() {
	for number := range 3 {
		ack := t.kept(fmt.Sprintf("%s-%d", t.tag, number), nats.Header{"Shop": {fmt.Sprintf("north %d", number)}})
		expect(ack.Duplicate, false, "duplicate")
		if number == 0 {
			t.firstOffset = ack.Sequence - 1
		}
		expect(ack.Sequence, t.lastSequence(), "sequence")
	}
}

func (t *tour) duplicate() {
	first := t.kept(t.tag+"-once", nil, jetstream.WithMsgID(t.tag))
	again := t.kept(t.tag+"-once", nil, jetstream.WithMsgID(t.tag))
	expect([]bool{first.Duplicate, again.Duplicate}, []bool{false, true}, "duplicate")
	expect(again.Sequence, first.Sequence, "sequence of the duplicate")
}

func (t *tour) wrongStream() {
	t.refused(jetstream.WithExpectStream("invoices"), 10060)
}

func (t *tour) wrongSequence() {
	t.refused(jetstream.WithExpectLastSequence(t.lastSequence()+1000), 10071)
	ack := t.kept(t.tag+"-expected", nil, jetstream.WithExpectLastSequence(t.lastSequence()))
	expect(ack.Sequence, t.lastSequence(), "sequence")
}

func (t *tour) ask(offset uint64) *nats.Subscription {
	request, err := json.Marshal(map[string]uint64{"offset": offset, "max_records": 10})
	must(err, "request")
	inbox := t.nc.NewInbox()
	answers := subscribe(t.nc, inbox)
	must(t.nc.PublishRequest("$LOG.FETCH.orders.0", inbox, request), "publish")
	return answers
}

func (t *tour) fetch() {
	answers := t.ask(t.firstOffset)
	for index, payload := range t.published {
		message := next(answers)
		expect(string(message.Data), payload, "payload")
		expect(message.Header.Get("Log-Stream"), "orders", "Log-Stream")
		expect(message.Header.Get("Log-Partition"), "0", "Log-Partition")
		expect(message.Header.Get("Log-Offset"), fmt.Sprint(t.firstOffset+uint64(index)), "Log-Offset")
		expect(message.Header.Get("Nats-Subject"), "orders.created", "Nats-Subject")
		expect(message.Header.Get("Log-Zone") != "", true, "Log-Zone is there")
		_, err := strconv.ParseUint(message.Header.Get("Log-Timestamp"), 10, 63)
		must(err, "Log-Timestamp")
		if index < 3 {
			expect(message.Header.Get("Shop"), fmt.Sprintf("north %d", index), "the publisher's own header")
		}
	}
	end := next(answers)
	expect([]string{end.Header.Get("Status"), end.Header.Get("Description")}, []string{"204", "EOB"}, "status")
	expect(end.Header.Get("Log-Next-Offset"), fmt.Sprint(t.lastSequence()), "Log-Next-Offset")
	expect(end.Header.Get("Log-High-Watermark"), fmt.Sprint(t.lastSequence()), "Log-High-Watermark")
	expect(end.Header.Get("Log-Start-Offset"), "0", "Log-Start-Offset")
	must(answers.Unsubscribe(), "unsubscribe")
}

func (t *tour) outOfRange() {
	answers := t.ask(t.firstOffset + 1_000_000)
	header := next(answers).Header
	status := []string{header.Get("Status"), header.Get("Description")}
	expect(status, []string{"416", "OFFSET_OUT_OF_RANGE"}, "status")
	must(answers.Unsubscribe(), "unsubscribe")
}

// take runs one step; a step that fails ends the program.
func (t *tour) take(name string, run func(*tour)) {
	defer func() {
		problem := recover()
		if problem == nil {
			return
		}
		err, known := problem.(failure)
		if !known {
			panic(problem)
		}
		fmt.Fprintf(os.Stderr, "FAILED %s: %v\n", name, err)
		os.Exit(1)
	}()
	run(t)
	if name != "open" {
		fmt.Println("ok", name)
	}
}

func (t *tour) open() {
	t.nc, t.other = t.dial(), connectTo(t.far)
	js, err := jetstream.New(t.nc)
	must(err, "jetstream")
	t.js = js
}

func main() {
	t := &tour{url: os.Args[1], far: os.Args[1], tag: nuid.Next()}
	if len(os.Args) > 3 {
		t.far = os.Args[3]
	}
	t.take("open", (*tour).open)
	defer t.nc.Close()
	defer t.other.Close()
	for _, step := range tours[os.Args[2]] {
		t.take(step.name, step.run)
	}
}

import static java.nio.charset.StandardCharsets.UTF_8;

import io.nats.client.Connection;
import io.nats.client.JetStream;
import io.nats.client.JetStreamApiException;
import io.nats.client.JetStreamStatusException;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.Options;
import io.nats.client.PublishOptions;
import io.nats.client.Subscription;
import io.nats.client.api.PublishAck;
import io.nats.client.impl.Headers;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.function.UnaryOperator;
import java.util.stream.IntStream;

/** The tour of jnats. The steps: see ../README.md. */
final class Tour {
    private static final Duration PATIENCE = Duration.ofSeconds(10);
    private static final int MAX_PAYLOAD_BYTES = 1024 * 1024;

    private interface Step {
        void run() throws Exception;
    }

    private final String url;
    /** The connection under test, and one that stands for everybody else. */
    private final Connection nc;
    private final Connection other;
    /** What the log steps remember. */
    private final String tag = UUID.randomUUID().toString();
    private final List<String> published = new ArrayList<>();
    private long firstOffset;

    private Tour(String url) throws Exception {
        this.url = url;
        this.nc = dial(options -> options);
        this.other = dial(options -> options);
    }

    private Map<String, Step> steps(String tour) {
        Map<String, Step> steps = new LinkedHashMap<>();
        if (tour.equals("core")) {
            steps.put("connect", this::connect);
            steps.put("publish-subscribe", this::publishSubscribe);
            steps.put("wildcard-token", this::wildcardToken);
            steps.put("wildcard-tail", this::wildcardTail);
            steps.put("queue-group", this::queueGroup);
            steps.put("request-reply", this::requestReply);
            steps.put("no-responders", this::noResponders);
            steps.put("headers", this::headers);
            steps.put("headers-multi", this::headersMulti);
            steps.put("echo-off", this::echoOff);
            steps.put("unsubscribe-max", this::unsubscribeMax);
            steps.put("flush-rtt", this::flushRtt);
            steps.put("drain", this::drain);
            steps.put("verbose-pedantic", this::verbosePedantic);
            steps.put("payload-max", this::payloadMax);
            steps.put("payload-too-large", this::payloadTooLarge);
        } else {
            steps.put("puback", this::puback);
            steps.put("duplicate", this::duplicate);
            steps.put("wrong-stream", this::wrongStream);
            steps.put("wrong-sequence", this::wrongSequence);
            steps.put("fetch", this::fetch);
            steps.put("out-of-range", this::outOfRange);
        }
        return steps;
    }

    private static void expect(Object actual, Object wanted, String what) {
        if (!Objects.equals(actual, wanted)) {
            throw new AssertionError(what + ": wanted " + wanted + ", got " + actual);
        }
    }

    private Connection dial(UnaryOperator<Options.Builder> more) throws Exception {
        return Nats.connect(more.apply(new Options.Builder().server(url).noReconnect().reportNoResponders()).build());
    }

    private static Subscription subscribe(Connection nc, String subject) throws Exception {
        Subscription subscription = nc.subscribe(subject);
        nc.flush(PATIENCE);
        return subscription;
    }

    private void publish(String subject, String payload) {
        other.publish(subject, payload.getBytes(UTF_8));
    }

    private static Message next(Subscription subscription) throws Exception {
        Message message = subscription.nextMessage(PATIENCE);
        if (message == null) {
            throw new AssertionError("no message came in time on " + subscription.getSubject());
        }
        return message;
    }

    private static String text(Message message) {
        return new String(message.getData(), UTF_8);
    }

    private static List<String> numbers(int count) {
        return IntStream.range(0, count).mapToObj(String::valueOf).toList();
    }

    private void connect() {
        expect(nc.getStatus(), Connection.Status.CONNECTED, "status");
        expect(nc.getMaxPayload(), (long) MAX_PAYLOAD_BYTES, "max_payload");
    }

    private void publishSubscribe() throws Exception {
        Subscription subscription = subscribe(nc, "tour.hello");
        List<byte[]> payloads = List.of("one".getBytes(UTF_8), new byte[0], new byte[] {0, '\r', '\n', -1});
        payloads.forEach(payload -> other.publish("tour.hello", payload));
        for (byte[] payload : payloads) {
            expect(Arrays.toString(next(subscription).getData()), Arrays.toString(payload), "payload");
        }
        subscription.unsubscribe();
    }

    private void matched(String pattern, List<String> subjects, List<String> wanted) throws Exception {
        Subscription subscription = subscribe(nc, pattern);
        subjects.forEach(subject -> publish(subject, subject));
        for (String subject : wanted) {
            Message message = next(subscription);
            expect(message.getSubject(), subject, "subject matched by " + pattern);
            expect(text(message), subject, "payload matched by " + pattern);
        }
        subscription.unsubscribe();
    }

    private void wildcardToken() throws Exception {
        List<String> subjects =
                List.of("tour.star.a.end", "tour.star.a.b.end", "tour.star.a.other", "tour.star.end", "tour.star.z.end");
        matched("tour.star.*.end", subjects, List.of("tour.star.a.end", "tour.star.z.end"));
    }

    private void wildcardTail() throws Exception {
        List<String> subjects = List.of("tour.tail", "tour.tail.a", "tour.other.a", "tour.tail.a.b.c", "tour.tail.z");
        matched("tour.tail.>", subjects, List.of("tour.tail.a", "tour.tail.a.b.c", "tour.tail.z"));
    }

    private void queueGroup() throws Exception {
        List<Connection> connections = new ArrayList<>();
        List<Subscription> members = new ArrayList<>();
        for (int index = 0; index < 3; index++) {
            Connection connection = dial(options -> options);
            connections.add(connection);
            members.add(connection.subscribe("tour.work", "workers"));
            connection.flush(PATIENCE);
        }
        numbers(100).forEach(number -> publish("tour.work", number));
        other.flush(PATIENCE);
        List<Integer> done = new ArrayList<>();
        for (int index = 0; index < 3; index++) {
            connections.get(index).flush(PATIENCE);
            long share = members.get(index).getPendingMessageCount();
            expect(share > 0, true, "every member got some");
            for (long taken = 0; taken < share; taken++) {
                done.add(Integer.valueOf(text(next(members.get(index)))));
            }
            connections.get(index).close();
        }
        Collections.sort(done);
        expect(done, IntStream.range(0, 100).boxed().toList(), "work done");
    }

    private void requestReply() throws Exception {
        var service = other.createDispatcher(request ->
                other.publish(request.getReplyTo(), ("pong:" + text(request)).getBytes(UTF_8)));
        service.subscribe("tour.service");
        other.flush(PATIENCE);
        for (String question : List.of("a", "b", "c")) {
            Message reply = nc.request("tour.service", question.getBytes(UTF_8), PATIENCE);
            expect(reply == null ? null : text(reply), "pong:" + question, "answer");
        }
        other.closeDispatcher(service);
    }

    private void noResponders() throws Exception {
        try {
            Message reply = nc.requestWithTimeout("tour.nobody", new byte[0], PATIENCE).get();
            throw new AssertionError("wanted no responders, got " + text(reply));
        } catch (ExecutionException error) {
            expect(error.getCause() instanceof JetStreamStatusException, true, "no responders: " + error.getCause());
            expect(((JetStreamStatusException) error.getCause()).getStatus().isNoResponders(), true, "status 503");
        }
    }

    private void headersReturn(Headers headers) throws Exception {
        Subscription subscription = subscribe(nc, "tour.headers");
        other.publish("tour.headers", headers, "with".getBytes(UTF_8));
        Message message = next(subscription);
        expect(text(message), "with", "payload");
        expect(message.getHeaders(), headers, "headers");
        subscription.unsubscribe();
    }

    private void headers() throws Exception {
        headersReturn(new Headers().add("Trace-Id", "Abc: 1, 2").add("trace-id", "lower"));
    }

    private void headersMulti() throws Exception {
        headersReturn(new Headers().add("Tag", "one", "two").add("Other", "x"));
    }

    private void echoOff() throws Exception {
        Connection silent = dial(Options.Builder::noEcho);
        Subscription subscription = subscribe(silent, "tour.echo");
        silent.publish("tour.echo", "own".getBytes(UTF_8));
        silent.flush(PATIENCE);
        publish("tour.echo", "foreign");
        expect(text(next(subscription)), "foreign", "first message");
        silent.close();
    }

    private void unsubscribeMax() throws Exception {
        Subscription limited = nc.subscribe("tour.max");
        limited.unsubscribe(3);
        Subscription after = subscribe(nc, "tour.max");
        numbers(5).forEach(number -> publish("tour.max", number));
        for (String number : numbers(5)) {
            expect(text(next(after)), number, "payload");
        }
        for (String number : numbers(3)) {
            expect(text(next(limited)), number, "payload before the limit");
        }
        expect(limited.isActive(), false, "active after the limit");
        after.unsubscribe();
    }

    private void flushRtt() throws Exception {
        nc.flush(PATIENCE);
        Duration roundTrip = nc.RTT();
        expect(roundTrip.isZero() || roundTrip.toSeconds() >= 5, false, "round trip out of bounds");
    }

    private void drain() throws Exception {
        List<String> seen = Collections.synchronizedList(new ArrayList<>());
        Connection leaving = dial(options -> options);
        leaving.createDispatcher(message -> seen.add(text(message))).subscribe("tour.drain");
        leaving.flush(PATIENCE);
        numbers(500).forEach(number -> publish("tour.drain", number));
        other.flush(PATIENCE);
        expect(leaving.drain(PATIENCE).get(PATIENCE.toMillis(), TimeUnit.MILLISECONDS), true, "drained");
        expect(seen, numbers(500), "messages handled");
        expect(leaving.getStatus(), Connection.Status.CLOSED, "status after draining");
    }

    private void verbosePedantic() throws Exception {
        Connection careful = dial(options -> options.verbose().pedantic());
        Subscription subscription = subscribe(careful, "tour.verbose");
        careful.publish("tour.verbose", "hello".getBytes(UTF_8));
        expect(text(next(subscription)), "hello", "payload");
        careful.flush(PATIENCE);
        careful.close();
    }

    private void payloadMax() throws Exception {
        Subscription subscription = subscribe(nc, "tour.large");
        String payload = "0123456789abcde\n".repeat(MAX_PAYLOAD_BYTES / 16);
        publish("tour.large", payload);
        expect(text(next(subscription)).equals(payload), true, "payload is equal");
        subscription.unsubscribe();
    }

    private void payloadTooLarge() {
        try {
            nc.publish("tour.large", new byte[MAX_PAYLOAD_BYTES + 1]);
        } catch (IllegalArgumentException refusal) {
            return;
        }
        throw new AssertionError("a payload above max_payload was accepted");
    }

    private PublishAck keep(String payload, Headers headers, PublishOptions.Builder options) throws Exception {
        JetStream js = nc.jetStream();
        PublishAck ack = js.publish("orders.created", headers, payload.getBytes(UTF_8), options.build());
        expect(ack.getStream(), "orders", "stream");
        if (!ack.isDuplicate()) {
            published.add(payload);
        }
        return ack;
    }

    private void refused(PublishOptions.Builder options, int code) throws Exception {
        try {
            PublishAck ack = keep("no", null, options);
            throw new AssertionError("wanted error " + code + ", got sequence " + ack.getSeqno());
        } catch (JetStreamApiException refusal) {
            expect(refusal.getApiErrorCode(), code, "error code");
        }
    }

    private long lastSequence() {
        return firstOffset + published.size();
    }

    private void puback() throws Exception {
        for (int number = 0; number < 3; number++) {
            Headers shop = new Headers().add("Shop", "north " + number);
            PublishAck ack = keep(tag + "-" + number, shop, PublishOptions.builder());
            expect(ack.isDuplicate(), false, "duplicate");
            if (number == 0) {
                firstOffset = ack.getSeqno() - 1;
            }
            expect(ack.getSeqno(), lastSequence(), "sequence");
        }
    }

    private void duplicate() throws Exception {
        PublishAck first = keep(tag + "-once", null, PublishOptions.builder().messageId(tag));
        PublishAck again = keep(tag + "-once", null, PublishOptions.builder().messageId(tag));
        expect(List.of(first.isDuplicate(), again.isDuplicate()), List.of(false, true), "duplicate");
        expect(again.getSeqno(), first.getSeqno(), "sequence of the duplicate");
    }

    private void wrongStream() throws Exception {
        refused(PublishOptions.builder().expectedStream("invoices"), 10060);
    }

    private void wrongSequence() throws Exception {
        long last = lastSequence();
        refused(PublishOptions.builder().expectedLastSequence(last + 1000), 10071);
        PublishAck ack = keep(tag + "-expected", null, PublishOptions.builder().expectedLastSequence(last));
        expect(ack.getSeqno(), last + 1, "sequence");
    }

    private Subscription ask(long offset) throws Exception {
        String inbox = nc.createInbox();
        Subscription answers = subscribe(nc, inbox);
        String request = "{\"offset\":" + offset + ",\"max_records\":10}";
        nc.publish("$LOG.FETCH.orders.0", inbox, request.getBytes(UTF_8));
        return answers;
    }

    private void fetch() throws Exception {
        Subscription answers = ask(firstOffset);
        for (int index = 0; index < published.size(); index++) {
            Message message = next(answers);
            Headers headers = message.getHeaders();
            expect(text(message), published.get(index), "payload");
            expect(headers.getLast("Log-Stream"), "orders", "Log-Stream");
            expect(headers.getLast("Log-Partition"), "0", "Log-Partition");
            expect(headers.getLast("Log-Offset"), String.valueOf(firstOffset + index), "Log-Offset");
            expect(headers.getLast("Nats-Subject"), "orders.created", "Nats-Subject");
            expect(headers.getLast("Log-Zone") == null, false, "Log-Zone is missing");
            expect(Long.parseLong(headers.getLast("Log-Timestamp")) > 0, true, "Log-Timestamp is there");
            if (index < 3) {
                expect(headers.getLast("Shop"), "north " + index, "the publisher's own header");
            }
        }
        Message end = next(answers);
        expect(end.getStatus().getCode(), 204, "status");
        expect(end.getStatus().getMessage(), "EOB", "description");
        expect(end.getHeaders().getLast("Log-Next-Offset"), String.valueOf(lastSequence()), "Log-Next-Offset");
        expect(end.getHeaders().getLast("Log-High-Watermark"), String.valueOf(lastSequence()), "Log-High-Watermark");
        expect(end.getHeaders().getLast("Log-Start-Offset"), "0", "Log-Start-Offset");
        answers.unsubscribe();
    }

    private void outOfRange() throws Exception {
        Subscription answers = ask(firstOffset + 1_000_000);
        Message message = next(answers);
        expect(message.getStatus().getCode(), 416, "status");
        expect(message.getStatus().getMessage(), "OFFSET_OUT_OF_RANGE", "description");
        answers.unsubscribe();
    }

    public static void main(String[] arguments) throws Exception {
        Tour tour = new Tour(arguments[0]);
        for (Map.Entry<String, Step> step : tour.steps(arguments[1]).entrySet()) {
            try {
                step.getValue().run();
            } catch (Exception | AssertionError error) {
                System.err.println("FAILED " + step.getKey() + ": " + error);
                System.exit(1);
            }
            System.out.println("ok " + step.getKey());
        }
        tour.nc.close();
        tour.other.close();
    }
}

/* The tour of nats.c. The steps: see ../README.md. The first failure ends the program, so nothing is freed before it. */
#include <inttypes.h>
#include <nats/nats.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PATIENCE_MS = 10000, MAX_PAYLOAD_BYTES = 1024 * 1024, RECORDS_MAX = 10, TEXT_BYTES_MAX = 128 };

typedef struct {
    const char *name;
    void (*run)(void);
} step;

/* The connection under test, and one that stands for everybody else. */
static const char *url;
static natsConnection *nc, *other;
static const char *step_name = "open";

/* What the log steps remember. */
static jsCtx *js;
static char tag[TEXT_BYTES_MAX / 2];
static char published[RECORDS_MAX][TEXT_BYTES_MAX];
static uint64_t published_count, first_offset;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "FAILED %s: ", step_name);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void check(natsStatus status, const char *what) {
    if (status != NATS_OK) fail("%s: %s", what, natsStatus_GetText(status));
}

static void expect_text(const char *actual, const char *wanted, const char *what) {
    if (actual == NULL || strcmp(actual, wanted) != 0)
        fail("%s: wanted %s, got %s", what, wanted, actual ? actual : "nothing");
}

static void expect_number(uint64_t actual, uint64_t wanted, const char *what) {
    if (actual != wanted) fail("%s: wanted %" PRIu64 ", got %" PRIu64, what, wanted, actual);
}

static void expect_data(natsMsg *message, const char *wanted, int size_bytes, const char *what) {
    if (natsMsg_GetDataLength(message) != size_bytes || memcmp(natsMsg_GetData(message), wanted, size_bytes) != 0)
        fail("%s: wanted %.80s, got %.80s (%d bytes)", what, wanted, natsMsg_GetData(message),
             natsMsg_GetDataLength(message));
}

static natsConnection *dial(bool no_echo, bool careful) {
    natsOptions *options;
    natsConnection *connection;
    check(natsOptions_Create(&options), "options");
    check(natsOptions_SetURL(options, url), "url");
    check(natsOptions_SetAllowReconnect(options, false), "no reconnect");
    check(natsOptions_SetNoEcho(options, no_echo), "no echo");
    check(natsOptions_SetVerbose(options, careful), "verbose");
    check(natsOptions_SetPedantic(options, careful), "pedantic");
    check(natsConnection_Connect(&connection, options), "connect");
    natsOptions_Destroy(options);
    return connection;
}

static natsSubscription *subscribe(natsConnection *connection, const char *subject) {
    natsSubscription *subscription;
    check(natsConnection_SubscribeSync(&subscription, connection, subject), "subscribe");
    check(natsConnection_FlushTimeout(connection, PATIENCE_MS), "flush");
    return subscription;
}

static void publish(natsConnection *connection, const char *subject, const char *text) {
    check(natsConnection_PublishString(connection, subject, text), "publish");
}

static void publish_numbers(const char *subject, int count) {
    char text[16];
    for (int number = 0; number < count; number++) {
        snprintf(text, sizeof text, "%d", number);
        publish(other, subject, text);
    }
    check(natsConnection_FlushTimeout(other, PATIENCE_MS), "flush");
}

static natsMsg *next(natsSubscription *subscription) {
    natsMsg *message;
    check(natsSubscription_NextMsg(&message, subscription, PATIENCE_MS), "next message");
    return message;
}

static void expect_next(natsSubscription *subscription, const char *text, const char *what) {
    natsMsg *message = next(subscription);
    expect_data(message, text, (int)strlen(text), what);
    natsMsg_Destroy(message);
}

static void expect_numbers(natsSubscription *subscription, int count, const char *what) {
    char text[16];
    for (int number = 0; number < count; number++) {
        snprintf(text, sizeof text, "%d", number);
        expect_next(subscription, text, what);
    }
}

static const char *header(natsMsg *message, const char *name) {
    const char *value = NULL;
    return natsMsgHeader_Get(message, name, &value) == NATS_OK ? value : NULL;
}

static void connect_step(void) {
    expect_number(natsConnection_Status(nc), NATS_CONN_STATUS_CONNECTED, "status");
    expect_number((uint64_t)natsConnection_GetMaxPayload(nc), MAX_PAYLOAD_BYTES, "max_payload");
}

static void publish_subscribe(void) {
    static const struct {
        const char *data;
        int size_bytes;
    } payloads[] = {{"one", 3}, {"", 0}, {"\0\r\n\xff", 4}};
    natsSubscription *subscription = subscribe(nc, "tour.hello");
    for (int index = 0; index < 3; index++)
        check(natsConnection_Publish(other, "tour.hello", payloads[index].data, payloads[index].size_bytes), "publish");
    for (int index = 0; index < 3; index++)
        expect_data(next(subscription), payloads[index].data, payloads[index].size_bytes, "payload");
    natsSubscription_Destroy(subscription);
}

static void matched(const char *pattern, const char *subjects[], const char *wanted[]) {
    natsSubscription *subscription = subscribe(nc, pattern);
    for (; *subjects; subjects++) publish(other, *subjects, *subjects);
    for (; *wanted; wanted++) {
        natsMsg *message = next(subscription);
        expect_text(natsMsg_GetSubject(message), *wanted, "subject");
        expect_data(message, *wanted, (int)strlen(*wanted), "payload");
        natsMsg_Destroy(message);
    }
    natsSubscription_Destroy(subscription);
}

static void wildcard_token(void) {
    const char *subjects[] = {"tour.star.a.end", "tour.star.a.b.end", "tour.star.a.other",
                              "tour.star.end",   "tour.star.z.end",   NULL};
    const char *wanted[] = {"tour.star.a.end", "tour.star.z.end", NULL};
    matched("tour.star.*.end", subjects, wanted);
}

static void wildcard_tail(void) {
    const char *subjects[] = {"tour.tail", "tour.tail.a", "tour.other.a", "tour.tail.a.b.c", "tour.tail.z", NULL};
    const char *wanted[] = {"tour.tail.a", "tour.tail.a.b.c", "tour.tail.z", NULL};
    matched("tour.tail.>", subjects, wanted);
}

static void queue_group(void) {
    natsConnection *connections[3];
    natsSubscription *members[3];
    int done[100] = {0};
    for (int index = 0; index < 3; index++) {
        connections[index] = dial(false, false);
        check(natsConnection_QueueSubscribeSync(&members[index], connections[index], "tour.work", "workers"), "join");
        check(natsConnection_FlushTimeout(connections[index], PATIENCE_MS), "flush");
    }
    publish_numbers("tour.work", 100);
    for (int index = 0; index < 3; index++) {
        uint64_t share;
        check(natsConnection_FlushTimeout(connections[index], PATIENCE_MS), "flush");
        check(natsSubscription_QueuedMsgs(members[index], &share), "queued messages");
        if (share == 0) fail("a member got nothing");
        for (; share > 0; share--) {
            natsMsg *message = next(members[index]);
            int number = atoi(natsMsg_GetData(message));
            if (number < 0 || number >= 100) fail("unknown work: %d", number);
            done[number]++;
            natsMsg_Destroy(message);
        }
        natsSubscription_Destroy(members[index]);
        natsConnection_Destroy(connections[index]);
    }
    for (int number = 0; number < 100; number++) expect_number((uint64_t)done[number], 1, "times that work was done");
}

static void answer(natsConnection *connection, natsSubscription *subscription, natsMsg *request, void *closure) {
    char text[TEXT_BYTES_MAX];
    (void)subscription;
    (void)closure;
    snprintf(text, sizeof text, "pong:%.*s", natsMsg_GetDataLength(request), natsMsg_GetData(request));
    publish(connection, natsMsg_GetReply(request), text);
    natsMsg_Destroy(request);
}

static void request_reply(void) {
    static const char *questions[] = {"a", "b", "c"};
    natsSubscription *service;
    check(natsConnection_Subscribe(&service, other, "tour.service", answer, NULL), "subscribe");
    check(natsConnection_FlushTimeout(other, PATIENCE_MS), "flush");
    for (int index = 0; index < 3; index++) {
        natsMsg *reply;
        char wanted[TEXT_BYTES_MAX];
        snprintf(wanted, sizeof wanted, "pong:%s", questions[index]);
        check(natsConnection_RequestString(&reply, nc, "tour.service", questions[index], PATIENCE_MS), "request");
        expect_data(reply, wanted, (int)strlen(wanted), "answer");
        natsMsg_Destroy(reply);
    }
    natsSubscription_Destroy(service);
}

static void no_responders(void) {
    natsMsg *reply = NULL;
    natsStatus status = natsConnection_RequestString(&reply, nc, "tour.nobody", "?", PATIENCE_MS);
    expect_text(natsStatus_GetText(status), natsStatus_GetText(NATS_NO_RESPONDERS), "status");
}

static natsMsg *headers_return(natsMsg *message) {
    natsSubscription *subscription = subscribe(nc, "tour.headers");
    check(natsConnection_PublishMsg(other, message), "publish");
    natsMsg *returned = next(subscription);
    expect_data(returned, "with", 4, "payload");
    natsMsg_Destroy(message);
    natsSubscription_Destroy(subscription);
    return returned;
}

static void headers(void) {
    natsMsg *message;
    check(natsMsg_Create(&message, "tour.headers", NULL, "with", 4), "message");
    check(natsMsgHeader_Set(message, "Trace-Id", "Abc: 1, 2"), "header");
    check(natsMsgHeader_Set(message, "trace-id", "lower"), "header");
    message = headers_return(message);
    expect_text(header(message, "Trace-Id"), "Abc: 1, 2", "Trace-Id");
    expect_text(header(message, "trace-id"), "lower", "trace-id");
    natsMsg_Destroy(message);
}

static void headers_multi(void) {
    natsMsg *message;
    const char **values;
    int count;
    check(natsMsg_Create(&message, "tour.headers", NULL, "with", 4), "message");
    check(natsMsgHeader_Add(message, "Tag", "one"), "header");
    check(natsMsgHeader_Add(message, "Tag", "two"), "header");
    message = headers_return(message);
    check(natsMsgHeader_Values(message, "Tag", &values, &count), "values");
    expect_number((uint64_t)count, 2, "number of values");
    expect_text(values[0], "one", "first value");
    expect_text(values[1], "two", "second value");
    free((void *)values);
    natsMsg_Destroy(message);
}

static void echo_off(void) {
    natsConnection *silent = dial(true, false);
    natsSubscription *subscription = subscribe(silent, "tour.echo");
    publish(silent, "tour.echo", "own");
    check(natsConnection_FlushTimeout(silent, PATIENCE_MS), "flush");
    publish(other, "tour.echo", "foreign");
    check(natsConnection_FlushTimeout(other, PATIENCE_MS), "flush");
    expect_next(subscription, "foreign", "first message");
    natsSubscription_Destroy(subscription);
    natsConnection_Destroy(silent);
}

static void unsubscribe_max(void) {
    natsMsg *message = NULL;
    natsSubscription *limited;
    check(natsConnection_SubscribeSync(&limited, nc, "tour.max"), "subscribe");
    check(natsSubscription_AutoUnsubscribe(limited, 3), "unsubscribe after three");
    natsSubscription *after = subscribe(nc, "tour.max");
    publish_numbers("tour.max", 5);
    expect_numbers(after, 5, "payload");
    expect_numbers(limited, 3, "payload before the limit");
    natsStatus status = natsSubscription_NextMsg(&message, limited, 1);
    if (status != NATS_MAX_DELIVERED_MSGS && status != NATS_INVALID_SUBSCRIPTION)
        fail("after the limit: %s", natsStatus_GetText(status));
    natsSubscription_Destroy(limited);
    natsSubscription_Destroy(after);
}

static void flush_rtt(void) {
    int64_t round_trip_ns;
    check(natsConnection_FlushTimeout(nc, PATIENCE_MS), "flush");
    check(natsConnection_GetRTT(nc, &round_trip_ns), "round trip");
    if (round_trip_ns <= 0 || round_trip_ns > 5000000000) fail("round trip of %" PRId64 " ns", round_trip_ns);
}

static int drained_count;

static void count_drained(natsConnection *connection, natsSubscription *subscription, natsMsg *message, void *closure) {
    (void)connection;
    (void)subscription;
    (void)closure;
    if (atoi(natsMsg_GetData(message)) == drained_count) drained_count++;
    natsMsg_Destroy(message);
}

static void drain(void) {
    natsConnection *leaving = dial(false, false);
    natsSubscription *subscription;
    check(natsConnection_Subscribe(&subscription, leaving, "tour.drain", count_drained, NULL), "subscribe");
    check(natsConnection_FlushTimeout(leaving, PATIENCE_MS), "flush");
    publish_numbers("tour.drain", 500);
    check(natsSubscription_Drain(subscription), "drain");
    check(natsSubscription_WaitForDrainCompletion(subscription, PATIENCE_MS), "wait for draining");
    expect_number((uint64_t)drained_count, 500, "messages handled in order");
    check(natsConnection_DrainTimeout(leaving, PATIENCE_MS), "drain the connection");
    for (int waited_ms = 0; !natsConnection_IsClosed(leaving); waited_ms++) {
        if (waited_ms > PATIENCE_MS) fail("the connection is not closed");
        nats_Sleep(1);
    }
    natsSubscription_Destroy(subscription);
    natsConnection_Destroy(leaving);
}

static void verbose_pedantic(void) {
    natsConnection *careful = dial(false, true);
    natsSubscription *subscription = subscribe(careful, "tour.verbose");
    publish(careful, "tour.verbose", "hello");
    expect_next(subscription, "hello", "payload");
    check(natsConnection_FlushTimeout(careful, PATIENCE_MS), "flush");
    natsSubscription_Destroy(subscription);
    natsConnection_Destroy(careful);
}

static void payload_max(void) {
    static char payload[MAX_PAYLOAD_BYTES];
    for (int index = 0; index < MAX_PAYLOAD_BYTES; index++) payload[index] = (char)(index % 251);
    natsSubscription *subscription = subscribe(nc, "tour.large");
    check(natsConnection_Publish(other, "tour.large", payload, MAX_PAYLOAD_BYTES), "publish");
    natsMsg *message = next(subscription);
    expect_data(message, payload, MAX_PAYLOAD_BYTES, "payload");
    natsMsg_Destroy(message);
    natsSubscription_Destroy(subscription);
}

static void payload_too_large(void) {
    static char payload[MAX_PAYLOAD_BYTES + 1];
    natsStatus status = natsConnection_Publish(nc, "tour.large", payload, sizeof payload);
    expect_text(natsStatus_GetText(status), natsStatus_GetText(NATS_MAX_PAYLOAD), "status");
}

static jsPubOptions publish_options(void) {
    jsPubOptions options;
    check(jsPubOptions_Init(&options), "publish options");
    options.MaxWait = PATIENCE_MS;
    return options;
}

/* Publishes to the stream and returns the sequence that it was given. */
static uint64_t keep(const char *text, const char *shop, jsPubOptions *options, bool duplicate) {
    natsMsg *message;
    jsPubAck *ack;
    jsErrCode code = 0;
    check(natsMsg_Create(&message, "orders.created", NULL, text, (int)strlen(text)), "message");
    if (shop) check(natsMsgHeader_Set(message, "Shop", shop), "header");
    natsStatus status = js_PublishMsg(&ack, js, message, options, &code);
    if (status != NATS_OK) fail("publish: %s, error code %d", natsStatus_GetText(status), (int)code);
    expect_text(ack->Stream, "orders", "stream");
    expect_number(ack->Duplicate, duplicate, "duplicate");
    if (!duplicate) snprintf(published[published_count++], TEXT_BYTES_MAX, "%s", text);
    uint64_t sequence = ack->Sequence;
    jsPubAck_Destroy(ack);
    natsMsg_Destroy(message);
    return sequence;
}

static void refused(jsPubOptions *options, jsErrCode wanted) {
    jsErrCode code = 0;
    jsPubAck *ack = NULL;
    natsStatus status = js_Publish(&ack, js, "orders.created", "no", 2, options, &code);
    if (status == NATS_OK) fail("accepted, sequence %" PRIu64, ack->Sequence);
    expect_number((uint64_t)code, (uint64_t)wanted, "error code");
}

static void puback(void) {
    char text[TEXT_BYTES_MAX], shop[TEXT_BYTES_MAX];
    for (int number = 0; number < 3; number++) {
        jsPubOptions options = publish_options();
        snprintf(text, sizeof text, "%s-%d", tag, number);
        snprintf(shop, sizeof shop, "north %d", number);
        uint64_t sequence = keep(text, shop, &options, false);
        if (number == 0) first_offset = sequence - 1;
        expect_number(sequence, first_offset + published_count, "sequence");
    }
}

static void duplicate(void) {
    char text[TEXT_BYTES_MAX];
    jsPubOptions options = publish_options();
    options.MsgId = tag;
    snprintf(text, sizeof text, "%s-once", tag);
    uint64_t first = keep(text, NULL, &options, false);
    expect_number(keep(text, NULL, &options, true), first, "sequence of the duplicate");
}

static void wrong_stream(void) {
    jsPubOptions options = publish_options();
    options.ExpectStream = "invoices";
    refused(&options, JSStreamNotMatchErr);
}

static void wrong_sequence(void) {
    char text[TEXT_BYTES_MAX];
    jsPubOptions options = publish_options();
    uint64_t last = first_offset + published_count;
    options.ExpectLastSeq = last + 1000;
    refused(&options, JSStreamWrongLastSequenceErr);
    options.ExpectLastSeq = last;
    snprintf(text, sizeof text, "%s-expected", tag);
    expect_number(keep(text, NULL, &options, false), last + 1, "sequence");
}

static natsSubscription *ask(uint64_t offset) {
    natsInbox *inbox;
    char request[TEXT_BYTES_MAX];
    check(natsInbox_Create(&inbox), "inbox");
    natsSubscription *answers = subscribe(nc, inbox);
    snprintf(request, sizeof request, "{\"offset\":%" PRIu64 ",\"max_records\":%d}", offset, RECORDS_MAX);
    check(natsConnection_PublishRequestString(nc, "$LOG.FETCH.orders.0", inbox, request), "publish");
    natsInbox_Destroy(inbox);
    return answers;
}

static void expect_header_number(natsMsg *message, const char *name, uint64_t wanted) {
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, wanted);
    expect_text(header(message, name), text, name);
}

static void fetch(void) {
    char shop[TEXT_BYTES_MAX];
    natsSubscription *answers = ask(first_offset);
    for (uint64_t index = 0; index < published_count; index++) {
        natsMsg *message = next(answers);
        expect_data(message, published[index], (int)strlen(published[index]), "payload");
        expect_text(header(message, "Log-Stream"), "orders", "Log-Stream");
        expect_text(header(message, "Log-Partition"), "0", "Log-Partition");
        expect_header_number(message, "Log-Offset", first_offset + index);
        expect_text(header(message, "Nats-Subject"), "orders.created", "Nats-Subject");
        if (!header(message, "Log-Zone") || !header(message, "Log-Timestamp")) fail("Log-Zone or Log-Timestamp missing");
        snprintf(shop, sizeof shop, "north %" PRIu64, index);
        if (index < 3) expect_text(header(message, "Shop"), shop, "the publisher's own header");
        natsMsg_Destroy(message);
    }
    natsMsg *end = next(answers);
    expect_text(header(end, "Status"), "204", "status");
    expect_text(header(end, "Description"), "EOB", "description");
    expect_header_number(end, "Log-Next-Offset", first_offset + published_count);
    expect_header_number(end, "Log-High-Watermark", first_offset + published_count);
    expect_text(header(end, "Log-Start-Offset"), "0", "Log-Start-Offset");
    natsMsg_Destroy(end);
    natsSubscription_Destroy(answers);
}

static void out_of_range(void) {
    natsSubscription *answers = ask(first_offset + 1000000);
    natsMsg *message = next(answers);
    expect_text(header(message, "Status"), "416", "status");
    expect_text(header(message, "Description"), "OFFSET_OUT_OF_RANGE", "description");
    natsMsg_Destroy(message);
    natsSubscription_Destroy(answers);
}

static const step core_tour[] = {
    {"connect", connect_step},
    {"publish-subscribe", publish_subscribe},
    {"wildcard-token", wildcard_token},
    {"wildcard-tail", wildcard_tail},
    {"queue-group", queue_group},
    {"request-reply", request_reply},
    {"no-responders", no_responders},
    {"headers", headers},
    {"headers-multi", headers_multi},
    {"echo-off", echo_off},
    {"unsubscribe-max", unsubscribe_max},
    {"flush-rtt", flush_rtt},
    {"drain", drain},
    {"verbose-pedantic", verbose_pedantic},
    {"payload-max", payload_max},
    {"payload-too-large", payload_too_large},
    {NULL, NULL},
};

static const step log_tour[] = {
    {"puback", puback},
    {"duplicate", duplicate},
    {"wrong-stream", wrong_stream},
    {"wrong-sequence", wrong_sequence},
    {"fetch", fetch},
    {"out-of-range", out_of_range},
    {NULL, NULL},
};

int main(int count, char **arguments) {
    if (count != 3) {
        fprintf(stderr, "usage: %s URL core|log\n", arguments[0]);
        return 2;
    }
    url = arguments[1];
    nc = dial(false, false);
    other = dial(false, false);
    check(natsConnection_JetStream(&js, nc, NULL), "jetstream");
    snprintf(tag, sizeof tag, "%" PRId64, nats_NowInNanoSeconds());
    for (const step *todo = strcmp(arguments[2], "log") == 0 ? log_tour : core_tour; todo->name; todo++) {
        step_name = todo->name;
        todo->run();
        printf("ok %s\n", step_name);
        fflush(stdout);
    }
    jsCtx_Destroy(js);
    natsConnection_Destroy(nc);
    natsConnection_Destroy(other);
    nats_Close();
    return 0;
}

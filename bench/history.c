/* Reads history over one connection and looks at every event, at next to no cost for the one who measures.
 *
 *     history fetch PORT STREAM BYTES FIRST COUNT   with $LOG.FETCH, one fetch after the other
 *     history push PORT STREAM BYTES FIRST COUNT    as an ordered consumer of JetStream: pushed, with flow control
 *     history pull PORT STREAM BYTES FIRST COUNT    as an ordered consumer of JetStream that pulls
 *
 * Prints the time as JSON. Events FIRST to FIRST + COUNT - 1 have to come in their order, each with the payload that
 * the program `acks` gave it, and nothing else; otherwise the program ends with status 1.
 */
#define _GNU_SOURCE /* memmem */
#define PROGRAM "history"
#include "client.h"

#define FETCH_BYTES (1 << 30) /* the most that one request takes */
#define PULL_EVENTS 4096
#define ASK_AGAIN_MS 2000
#define ASK_TIMES 30

static struct {
    int fd;
    char inbox[32], api_inbox[40]; /* of this process: consumers of older ones may go on for a while */
    const char *stream;
    size_t bytes;
    char consumer[32]; /* of this process, for the same reason */
} options;
static uint64_t first, expected, end; /* numbers of events: where it began, of the next one, behind the last one */
static uint64_t began_ns; /* when that was asked for to which an answer came */

static void take_event(uint64_t number, const struct frame *frame) {
    if (number != expected) fail("not the next event", frame->reply ? frame->reply : frame->headers);
    if (frame->payload_size != options.bytes || memcmp(frame->payload, payload_of(number), options.bytes) != 0)
        fail("not the payload that was published", frame->subject);
    expected++;
}

/* The number behind `name` in the headers, looked for first where such a name stood last. */
static uint64_t header_of(const struct frame *frame, const char *name) {
    static size_t last;
    size_t size = strlen(name);
    if (last + size > frame->headers_size || memcmp(frame->headers + last, name, size) != 0) {
        char *at = memmem(frame->headers, frame->headers_size, name, size);
        if (at == NULL) fail("no such header", name);
        last = (size_t)(at - frame->headers);
    }
    return strtoull(frame->headers + last + size, NULL, 10);
}

static int has_status(const struct frame *frame, const char *status) {
    return frame->headers_size > 12 && memcmp(frame->headers + 9, status, 3) == 0;
}

/* -- ours --------------------------------------------------------------------------------------------------------- */

static void ask_for_more(void) {
    char body[256], line[512];
    int size = snprintf(body, sizeof body,
                        "{\"offset\":%llu,\"end_offset\":%llu,\"max_records\":1000000000,\"max_bytes\":%d}",
                        (unsigned long long)expected, (unsigned long long)end, FETCH_BYTES);
    snprintf(line, sizeof line, "PUB $LOG.FETCH.%s.0 %s %d\r\n%s\r\n", options.stream, options.inbox, size, body);
    say(line);
    send_output(options.fd);
}

static void read_fetches(void) {
    struct frame frame;
    ask_for_more();
    while (expected < end) {
        receive_something(options.fd);
        while (next_frame(&frame)) {
            if (frame.headers_size && frame.headers[8] == '\r') {
                take_event(header_of(&frame, "Log-Offset: "), &frame);
                continue;
            }
            if (!has_status(&frame, "204")) fail("the log refuses", frame.headers);
            if (header_of(&frame, "Log-Next-Offset: ") != expected) fail("events are missing", frame.headers);
            if (expected < end) ask_for_more();
        }
        if (output_size) send_output(options.fd);
    }
}

/* -- JetStream's --------------------------------------------------------------------------------------------------- */

/* The stream's sequence in `$JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>...`: the sixth word. */
static uint64_t sequence_of(const struct frame *frame) {
    const char *at = frame->reply;
    if (at == NULL || strncmp(at, "$JS.ACK.", 8) != 0) fail("not from a consumer", frame->subject);
    for (int dots = 0; dots < 5; at++) dots += *at == '.';
    return strtoull(at, NULL, 10);
}

/* An event, or what the consumer says beside them. */
static void take_delivery(const struct frame *frame) {
    char line[512];
    if (frame->headers_size == 0) {
        take_event(sequence_of(frame) - 1, frame);
    } else if (!has_status(frame, "100")) {
        fail("the consumer refuses", frame->headers);
    } else if (frame->reply != NULL) { /* flow control: it goes on once this is answered */
        snprintf(line, sizeof line, "PUB %s 0\r\n\r\n", frame->reply);
        say(line);
    }
}

/* 1: what has come was taken, until the answer about the consumer; 0: nothing comes. */
static int is_answered(void) {
    struct frame frame;
    while (can_receive(options.fd, ASK_AGAIN_MS)) {
        receive_something(options.fd);
        while (next_frame(&frame)) {
            if (strcmp(frame.subject, options.api_inbox) != 0) {
                take_delivery(&frame);
                continue;
            }
            if (memmem(frame.payload, frame.payload_size, "\"error\"", 7)) fail("no consumer", frame.payload);
            return 1;
        }
    }
    return 0;
}

/* A cluster loses requests without a word when it has just started, and when a consumer is so new that not every node
 * knows of it. Clients ask again, and so does this; the silence before the first event does not count. */
static void create_consumer(const char *deliver) {
    char body[512], line[1024];
    int times = 0;
    snprintf(options.consumer, sizeof options.consumer, "benchmark%d", (int)getpid());
    int size = snprintf(body, sizeof body,
                        "{\"stream_name\":\"%s\",\"config\":{\"name\":\"%s\",\"deliver_policy\":\"by_start_sequence\","
                        "\"opt_start_seq\":%llu,\"ack_policy\":\"none\",\"max_deliver\":1,"
                        "\"replay_policy\":\"instant\",\"num_replicas\":1,\"mem_storage\":true,"
                        "\"inactive_threshold\":30000000000%s}}",
                        options.stream, options.consumer, (unsigned long long)first + 1, deliver);
    snprintf(line, sizeof line, "PUB $JS.API.CONSUMER.CREATE.%s.%s %s %d\r\n%s\r\n", options.stream, options.consumer,
             options.api_inbox, size, body);
    do {
        if (++times > ASK_TIMES) fail("no consumer", "the server says nothing");
        began_ns = now_ns();
        say(line);
        send_output(options.fd);
    } while (!is_answered());
}

/* The next delivery, and not another answer about the consumer. */
static int next_delivery(struct frame *frame) {
    while (next_frame(frame))
        if (strcmp(frame->subject, options.api_inbox) != 0) return 1;
    return 0;
}

static void read_pushed(void) {
    struct frame frame;
    char deliver[256];
    snprintf(deliver, sizeof deliver, ",\"flow_control\":true,\"idle_heartbeat\":5000000000,\"deliver_subject\":\"%s\"",
             options.inbox);
    create_consumer(deliver);
    while (expected < end) {
        while (next_delivery(&frame)) take_delivery(&frame);
        if (output_size) send_output(options.fd);
        if (expected < end) receive_something(options.fd);
    }
}

static void pull(void) {
    char body[128], line[256];
    int size = snprintf(body, sizeof body, "{\"batch\":%d,\"expires\":30000000000}", PULL_EVENTS);
    snprintf(line, sizeof line, "PUB $JS.API.CONSUMER.MSG.NEXT.%s.%s %s %d\r\n%s\r\n", options.stream,
             options.consumer, options.inbox, size, body);
    say(line);
}

/* The number behind what is asked for. */
static uint64_t pull_twice(void) {
    pull();
    pull();
    send_output(options.fd);
    return expected + 2 * PULL_EVENTS;
}

static void read_pulled(void) {
    struct frame frame;
    create_consumer("");
    uint64_t asked = pull_twice();
    while (expected < end) {
        while (next_delivery(&frame) && expected < end) {
            take_delivery(&frame);
            if (asked - expected <= PULL_EVENTS) { /* the next pull waits there before this one is through */
                pull();
                asked += PULL_EVENTS;
            }
        }
        if (output_size) send_output(options.fd);
        if (expected == end) return;
        if (expected == first && !can_receive(options.fd, ASK_AGAIN_MS)) {
            began_ns = now_ns();
            asked = pull_twice();
        }
        receive_something(options.fd);
    }
}

int main(int count, char **words) {
    char subscribe[128];
    if (count != 7) {
        fprintf(stderr, "usage: history fetch|push|pull PORT STREAM BYTES FIRST COUNT\n");
        return 2;
    }
    options.stream = words[3];
    options.bytes = strtoull(words[4], NULL, 10);
    expected = first = strtoull(words[5], NULL, 10);
    end = first + strtoull(words[6], NULL, 10);
    if (options.bytes > PAYLOAD_BYTES_MAX) fail("BYTES", words[4]);
    make_payloads();
    snprintf(options.inbox, sizeof options.inbox, "_INBOX.benchmark%d", (int)getpid());
    snprintf(options.api_inbox, sizeof options.api_inbox, "%s.api", options.inbox);
    snprintf(subscribe, sizeof subscribe, "SUB %s 1\r\nSUB %s.* 2\r\n", options.inbox, options.inbox);
    options.fd = connect_to(atoi(words[2]), 0, subscribe);
    began_ns = now_ns();
    if (strcmp(words[1], "fetch") == 0)
        read_fetches();
    else if (strcmp(words[1], "push") == 0)
        read_pushed();
    else
        read_pulled();
    printf("{\"seconds\": %.9f}\n", (double)(now_ns() - began_ns) / 1e9);
    return 0;
}

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
#define INBOX "_INBOX.benchmark"

static struct {
    int fd;
    const char *stream;
    size_t bytes;
    char consumer[32]; /* that pulls: of this process, since an older one may be there for a while */
} options;
static uint64_t first, expected, end; /* numbers of events: where it began, of the next one, behind the last one */

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
    snprintf(line, sizeof line, "PUB $LOG.FETCH.%s.0 " INBOX " %d\r\n%s\r\n", options.stream, size, body);
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

static void create_consumer(const char *deliver, const char *api_suffix) {
    char body[512], line[1024];
    struct frame frame;
    int size = snprintf(body, sizeof body,
                        "{\"stream_name\":\"%s\",\"config\":{\"deliver_policy\":\"by_start_sequence\",\"opt_start_seq\":%llu,"
                        "\"ack_policy\":\"none\",\"max_deliver\":1,\"replay_policy\":\"instant\",\"num_replicas\":1,"
                        "\"mem_storage\":true,%s}}",
                        options.stream, (unsigned long long)first + 1, deliver);
    snprintf(line, sizeof line, "PUB $JS.API.CONSUMER.CREATE.%s%s " INBOX ".api %d\r\n%s\r\n", options.stream,
             api_suffix, size, body);
    say(line);
    send_output(options.fd);
    while (!next_frame(&frame)) receive_something(options.fd);
    if (strcmp(frame.subject, INBOX ".api") != 0 || memmem(frame.payload, frame.payload_size, "\"error\"", 7))
        fail("no consumer", frame.payload);
}

static void read_pushed(void) {
    struct frame frame;
    char line[512];
    create_consumer("\"flow_control\":true,\"idle_heartbeat\":5000000000,\"deliver_subject\":\"" INBOX "\"", "");
    while (expected < end) {
        while (next_frame(&frame)) {
            if (frame.headers_size == 0 || !has_status(&frame, "100")) {
                take_event(sequence_of(&frame) - 1, &frame);
            } else if (frame.reply != NULL) { /* flow control: it goes on once this is answered */
                snprintf(line, sizeof line, "PUB %s 0\r\n\r\n", frame.reply);
                say(line);
            }
        }
        if (output_size) send_output(options.fd);
        if (expected < end) receive_something(options.fd);
    }
}

static void pull(void) {
    char body[128], line[256];
    int size = snprintf(body, sizeof body, "{\"batch\":%d,\"expires\":30000000000}", PULL_EVENTS);
    snprintf(line, sizeof line, "PUB $JS.API.CONSUMER.MSG.NEXT.%s.%s " INBOX " %d\r\n%s\r\n", options.stream,
             options.consumer, size, body);
    say(line);
}

static void read_pulled(void) {
    struct frame frame;
    uint64_t asked;
    char config[128], suffix[sizeof options.consumer + 1];
    snprintf(options.consumer, sizeof options.consumer, "benchmark%d", (int)getpid());
    snprintf(suffix, sizeof suffix, ".%s", options.consumer);
    snprintf(config, sizeof config, "\"name\":\"%s\",\"inactive_threshold\":30000000000", options.consumer);
    create_consumer(config, suffix);
    for (asked = expected; asked < expected + 2 * PULL_EVENTS; asked += PULL_EVENTS) pull();
    send_output(options.fd);
    while (expected < end) {
        while (next_frame(&frame) && expected < end) {
            if (frame.headers_size) fail("the consumer refuses", frame.headers);
            take_event(sequence_of(&frame) - 1, &frame);
            if (asked - expected <= PULL_EVENTS) { /* the next pull waits there before this one is through */
                pull();
                asked += PULL_EVENTS;
            }
        }
        if (output_size) send_output(options.fd);
        if (expected < end) receive_something(options.fd);
    }
}

int main(int count, char **words) {
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
    options.fd = connect_to(atoi(words[2]), 0, "SUB " INBOX " 1\r\nSUB " INBOX ".* 2\r\n");
    uint64_t began = now_ns();
    if (strcmp(words[1], "fetch") == 0)
        read_fetches();
    else if (strcmp(words[1], "push") == 0)
        read_pushed();
    else
        read_pulled();
    printf("{\"seconds\": %.9f}\n", (double)(now_ns() - began) / 1e9);
    return 0;
}

/* Acknowledged publishes, at next to no cost for the one who measures.
 *
 *     acks PORT SUBJECT BYTES WINDOW SECONDS COUNT FIRST PATIENCE_MS
 *
 * Publishes events of BYTES with a new inbox each under one wildcard, WINDOW of them unanswered at a time, for SECONDS
 * and at most COUNT of them (0 = any number), numbered from FIRST; prints what it saw as JSON.
 *
 * PATIENCE_MS 0: each event has to be acknowledged, at the sequence that is its number + 1; anything else ends the
 * program with status 1. Otherwise an event without an answer for so long is given up, one that is refused is counted
 * and waited for a moment, and both go on: the publisher who lives through the loss of a node.
 */
#define _GNU_SOURCE /* memmem */
#define PROGRAM "acks"
#include "client.h"

#define FLIGHT_MAX 65536 /* a power of two */
#define LINE_BYTES_MAX 256
#define REFUSED_PAUSE_MS 5
#define INBOX "_INBOX.benchmark."

static struct {
    int fd;
    const char *subject;
    size_t bytes;
    uint64_t window, count, first, patience_ns;
} options;

/* Of events on their way: when they were sent, 0 once they are answered or given up. */
static uint64_t sent_ns[FLIGHT_MAX];
static uint64_t published, oldest, unanswered; /* how many; the first that may be unanswered; how many are */
static uint64_t acked, refused, given_up, late; /* late: acknowledged after it was given up */
static uint64_t last_ack_ns, longest_gap_ns, longest_gap_at_ns;
static char last_refusal[256];

static void publish(uint64_t now) {
    char line[LINE_BYTES_MAX];
    uint64_t number = options.first + published;
    int size = snprintf(line, sizeof line, "PUB %s " INBOX "%010llu %zu\r\n", options.subject,
                        (unsigned long long)published, options.bytes);
    if (size >= (int)sizeof line) fail("subject", "too long");
    say_bytes(line, (size_t)size);
    say_bytes(payload_of(number), options.bytes);
    say_bytes("\r\n", 2);
    sent_ns[published++ % FLIGHT_MAX] = now;
    unanswered++;
}

static int has_room(void) {
    return unanswered < options.window && published - oldest < FLIGHT_MAX &&
           (options.count == 0 || published < options.count) &&
           output_size + options.bytes + 2 * LINE_BYTES_MAX < sizeof output;
}

static void end_of(uint64_t index) {
    sent_ns[index % FLIGHT_MAX] = 0;
    unanswered--;
    while (oldest < published && sent_ns[oldest % FLIGHT_MAX] == 0) oldest++;
}

/* The sequence in an acknowledgement, 0 if it is none. */
static uint64_t sequence_of(const struct frame *frame) {
    static const char begin[] = "{\"stream\":", key[] = "\"seq\":";
    if (frame->headers_size || frame->payload_size < sizeof begin || memcmp(frame->payload, begin, sizeof begin - 1))
        return 0;
    if (memmem(frame->payload, frame->payload_size, "\"duplicate\"", 11)) return 0;
    char *at = memmem(frame->payload, frame->payload_size, key, sizeof key - 1);
    return at ? strtoull(at + sizeof key - 1, NULL, 10) : 0;
}

/* Between two acknowledgements. */
static void note_gap(uint64_t now) {
    if (now - last_ack_ns > longest_gap_ns) longest_gap_ns = now - last_ack_ns, longest_gap_at_ns = last_ack_ns;
    last_ack_ns = now;
}

/* 0: refused. */
static int answered(const struct frame *frame, uint64_t now) {
    size_t prefix = sizeof INBOX - 1;
    if (memcmp(frame->subject, INBOX, prefix) != 0) fail("not an inbox", frame->subject);
    uint64_t index = strtoull(frame->subject + prefix, NULL, 10), sequence = sequence_of(frame);
    int is_awaited = index < published && index >= oldest && sent_ns[index % FLIGHT_MAX] != 0;
    if (options.patience_ns == 0) {
        if (sequence != options.first + index + 1) fail("not the acknowledgement of its event", frame->payload);
        if (!is_awaited) fail("acknowledged twice", frame->subject);
    }
    if (sequence != 0) note_gap(now);
    if (!is_awaited) return late += sequence != 0, 1;
    if (sequence != 0) {
        acked++;
        if (options.window == 1) keep_trip(now - sent_ns[index % FLIGHT_MAX]);
    } else {
        refused++;
        size_t size = frame->payload_size + frame->headers_size;
        snprintf(last_refusal, sizeof last_refusal, "%.*s", (int)(size < 200 ? size : 200), frame->headers);
    }
    end_of(index);
    return sequence != 0;
}

/* Gives up what has waited for too long. */
static void lose_patience(uint64_t now) {
    while (oldest < published && now - sent_ns[oldest % FLIGHT_MAX] > options.patience_ns) {
        given_up++;
        end_of(oldest);
    }
}

/* Waits for answers and takes them. */
static void take_answers(void) {
    struct frame frame;
    int is_refused = 0;
    if (options.patience_ns == 0)
        receive_something(options.fd);
    else if (can_receive(options.fd, REFUSED_PAUSE_MS) && !receive(options.fd))
        fail("receive", "the server closed the connection");
    uint64_t now = now_ns();
    while (next_frame(&frame)) is_refused |= !answered(&frame, now);
    if (options.patience_ns != 0) lose_patience(now);
    if (is_refused) usleep(REFUSED_PAUSE_MS * 1000);
}

static void print_text(const char *text) {
    putchar('"');
    for (; *text; text++)
        if ((unsigned char)*text >= ' ' && *text != '"' && *text != '\\') putchar(*text);
    putchar('"');
}

static void run(double seconds) {
    uint64_t began = now_ns(), until = began + (uint64_t)(seconds * 1e9), now = began, ended_ns;
    last_ack_ns = began;
    do {
        for (now = now_ns(); now < until && has_room();) publish(now);
        if (output_size > 0) send_output(options.fd);
        if (unanswered > 0) take_answers();
    } while (unanswered > 0 || (now < until && (options.count == 0 || published < options.count)));
    ended_ns = last_ack_ns;
    if (options.patience_ns != 0) note_gap(now_ns()); /* the gap that nothing has ended */
    sort_trips();
    printf("{\"published\": %llu, \"acked\": %llu, \"refused\": %llu, \"given_up\": %llu, \"late\": %llu, ",
           (unsigned long long)published, (unsigned long long)acked, (unsigned long long)refused,
           (unsigned long long)given_up, (unsigned long long)late);
    printf("\"seconds\": %.9f, \"p50_ns\": %u, \"p99_ns\": %u, \"longest_gap_ns\": %llu, \"longest_gap_at_ns\": %llu, ",
           (double)(ended_ns - began) / 1e9, quantile(50), quantile(99), (unsigned long long)longest_gap_ns,
           (unsigned long long)(longest_gap_at_ns - began));
    printf("\"last_refusal\": ");
    print_text(last_refusal);
    printf("}\n");
}

int main(int count, char **words) {
    if (count != 9) {
        fprintf(stderr, "usage: acks PORT SUBJECT BYTES WINDOW SECONDS COUNT FIRST PATIENCE_MS\n");
        return 2;
    }
    options.subject = words[2];
    options.bytes = strtoull(words[3], NULL, 10);
    options.window = strtoull(words[4], NULL, 10);
    options.count = strtoull(words[6], NULL, 10);
    options.first = strtoull(words[7], NULL, 10);
    options.patience_ns = strtoull(words[8], NULL, 10) * 1000000u;
    if (options.window < 1 || options.window > FLIGHT_MAX / 2) fail("WINDOW", words[4]);
    if (options.bytes > PAYLOAD_BYTES_MAX) fail("BYTES", words[3]);
    make_payloads();
    /* With patience, who hears of nobody being there (503) hears it at once. */
    options.fd = connect_to(atoi(words[1]), options.patience_ns != 0, "SUB " INBOX "* 1\r\n");
    run(atof(words[5]));
    return 0;
}

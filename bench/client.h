/* What the load generators in C have in common: one blocking connection, frames in, bytes out.
 *
 * Included by each program, which defines PROGRAM, its name in error texts. Whatever is not expected ends the program
 * with status 1 and one line on stderr.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define INPUT_BYTES (4 << 20)
#define OUTPUT_BYTES (16 << 20)
#define SILENCE_MS_MAX 60000
#define TRIPS_MAX (1 << 22)
#define WORDS_MAX 6

static char input[INPUT_BYTES];
static size_t input_size, input_at;
static char output[OUTPUT_BYTES];
static size_t output_size;
static uint32_t trips[TRIPS_MAX]; /* times of single round trips, in ns */
static size_t trips_kept;

static inline void fail(const char *what, const char *detail) {
    fprintf(stderr, PROGRAM ": %s: ", what);
    for (int shown = 0; shown < 200 && detail[shown]; shown++)
        fputc(detail[shown] >= ' ' && detail[shown] <= '~' ? detail[shown] : '.', stderr);
    fputc('\n', stderr);
    exit(1);
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void send_output(int fd) {
    for (size_t sent = 0; sent < output_size;) {
        ssize_t size = send(fd, output + sent, output_size - sent, MSG_NOSIGNAL);
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) fail("send", strerror(errno));
        sent += (size_t)size;
    }
    output_size = 0;
}

static inline void say_bytes(const char *bytes, size_t size) {
    if (output_size + size > sizeof output) fail("output", "too much under way");
    memcpy(output + output_size, bytes, size);
    output_size += size;
}

static inline void say(const char *text) { say_bytes(text, strlen(text)); }

/* Reads once; what was not consumed moves to the front. 0: the server closed the connection. */
static inline int receive(int fd) {
    memmove(input, input + input_at, input_size - input_at);
    input_size -= input_at;
    input_at = 0;
    if (input_size == sizeof input) fail("input", "a frame without an end");
    ssize_t size;
    do size = recv(fd, input + input_size, sizeof input - input_size, 0);
    while (size < 0 && errno == EINTR);
    if (size < 0) fail("recv", strerror(errno));
    input_size += (size_t)size;
    return size > 0;
}

/* 1: something can be read; 0: nothing came for `wait_ms`. */
static inline int can_receive(int fd, int wait_ms) {
    struct pollfd one = {.fd = fd, .events = POLLIN};
    int ready;
    do ready = poll(&one, 1, wait_ms);
    while (ready < 0 && errno == EINTR);
    if (ready < 0) fail("poll", strerror(errno));
    return ready;
}

/* As `receive`, but silence ends the program, and so does a closed connection. */
static inline void receive_something(int fd) {
    if (!can_receive(fd, SILENCE_MS_MAX)) fail("receive", "the server says nothing");
    if (!receive(fd)) fail("receive", "the server closed the connection");
}

/* Points into `input`, until the next read. Texts end with NUL; `headers` and `payload` are sizes in bytes and bytes. */
struct frame {
    char *subject, *reply; /* reply: NULL without one */
    char *headers, *payload;
    size_t headers_size, payload_size;
};

static inline void read_words(char *line, char *end, int has_headers, struct frame *frame) {
    char *words[WORDS_MAX];
    int count = 0;
    end[-1] = '\0';
    for (char *at = line; count < WORDS_MAX; at++) {
        words[count++] = at;
        at = strchr(at, ' ');
        if (at == NULL) break;
        *at = '\0';
    }
    int fixed = has_headers ? 5 : 4; /* words of a frame without a reply subject */
    if (count != fixed && count != fixed + 1) fail("not a message", line);
    frame->subject = words[1];
    frame->reply = count > fixed ? words[3] : NULL;
}

/* 1: a message, 0: more has to be read. Answers PING; anything else but PONG ends the program. */
static inline int next_frame(struct frame *frame) {
    for (;;) {
        char *line = input + input_at;
        char *end = memchr(line, '\n', input_size - input_at);
        if (end == NULL) return 0;
        int has_headers = end - line > 5 && memcmp(line, "HMSG ", 5) == 0;
        if (has_headers || (end - line > 4 && memcmp(line, "MSG ", 4) == 0)) {
            char *last = end - 1; /* the size is the last word, in front of it that of the headers */
            while (last[-1] != ' ') last--;
            size_t size = (size_t)strtol(last, NULL, 10), headers_size = 0;
            size_t head = (size_t)(end - line) + 1;
            if (input_size - input_at < head + size + 2) return 0;
            if (has_headers) {
                for (last--; last[-1] != ' ';) last--;
                headers_size = (size_t)strtol(last, NULL, 10);
            }
            if (memcmp(line + head + size, "\r\n", 2) != 0 || headers_size > size) fail("a message is torn", line);
            read_words(line, end, has_headers, frame);
            frame->headers = line + head;
            frame->headers_size = headers_size;
            frame->payload = line + head + headers_size;
            frame->payload_size = size - headers_size;
            input_at += head + size + 2;
            return 1;
        }
        if (memcmp(line, "PING", 4) == 0)
            say("PONG\r\n");
        else if (memcmp(line, "PONG", 4) != 0)
            fail("not expected", line);
        input_at += (size_t)(end - line) + 1;
    }
}

/* A connection that has carried out `commands`. */
static inline int connect_to(int port, int no_responders, const char *commands) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) fail("connect", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    while (memchr(input, '\n', input_size) == NULL) receive_something(fd);
    input_at = input_size; /* INFO */
    char text[256];
    snprintf(text, sizeof text,
             "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":%s,\"protocol\":0}\r\n",
             no_responders ? "true" : "false");
    say(text);
    say(commands);
    say("PING\r\n");
    send_output(fd);
    do receive_something(fd);
    while (memchr(input, '\n', input_size) == NULL);
    if (memcmp(input, "PONG", 4) != 0) fail("connect", input);
    input_at = input_size;
    return fd;
}

/* -- times of single round trips ---------------------------------------------------------------------------------- */

static inline void keep_trip(uint64_t ns) {
    if (trips_kept < TRIPS_MAX) trips[trips_kept++] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

static inline int ascending(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static inline void sort_trips(void) { qsort(trips, trips_kept, sizeof *trips, ascending); }

/* In ns, after `sort_trips`; 0 if none were kept. */
static inline uint32_t quantile(unsigned per_cent) { return trips_kept ? trips[trips_kept * per_cent / 100] : 0; }

/* -- payloads ------------------------------------------------------------------------------------------------------- */

#define POOL_BYTES (256 << 10) /* stays in a core's cache: who compares with it measures the sender, not its own memory */
#define PAYLOAD_BYTES_MAX (64 << 10)

static char pool[POOL_BYTES + PAYLOAD_BYTES_MAX];

/* Eight random bytes, eight of text, and so on; the same in every program. */
static inline void make_payloads(void) {
    uint64_t state = 88172645463325252u;
    for (size_t at = 0; at < sizeof pool; at += 16) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17; /* xorshift64 */
        memcpy(pool + at, &state, 8);
        memcpy(pool + at + 8, "a text, ", 8);
    }
}

/* That of event `number`, PAYLOAD_BYTES_MAX long at most. */
static inline const char *payload_of(uint64_t number) { return pool + number * 4099 % POOL_BYTES; }

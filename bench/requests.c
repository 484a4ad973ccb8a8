/* Request and reply, at next to no cost for the one who measures.
 *
 *     requests answer PORT                          answers on "svc.bench" until it is ended; prints "ready" first
 *     requests ask PORT one|mux|own SECONDS FLIGHT  asks, with FLIGHT requests under way; prints what it saw as JSON
 *
 * Inboxes of a request: `mux` = one wildcard subscription, a new last token each time, as clients do it today; `own` = a
 * subscription of its own for each request, SUB and UNSUB included; `one` = the same inbox always.
 *
 * Every reply is checked: each token comes back exactly once (count and sum), otherwise the program ends with status 1.
 * With one request under way its round trips are kept one by one; the JSON gives their quantiles in nanoseconds.
 */
#define PROGRAM "requests"
#include "client.h"

#define REQUEST_BYTES_MAX 256
#define FLIGHT_MAX 65536
#define PAYLOAD "0123456789abcdef"

static int answer(int port) {
    int fd = connect_to(port, 0, "SUB svc.bench 1\r\n");
    char head[REQUEST_BYTES_MAX];
    struct frame frame;
    printf("ready\n");
    fflush(stdout);
    while (receive(fd)) {
        while (next_frame(&frame)) {
            if (frame.reply == NULL) fail("no reply subject", frame.subject);
            int size = snprintf(head, sizeof head, "PUB %s %zu\r\n" PAYLOAD "\r\n", frame.reply, strlen(PAYLOAD));
            if (size >= (int)sizeof head) fail("reply subject is too long", frame.reply);
            say(head);
            if (output_size > sizeof output / 2) send_output(fd);
        }
        send_output(fd);
    }
    return 0;
}

static void ask_once(char mode, uint64_t token) {
    char text[REQUEST_BYTES_MAX];
    int size;
    if (mode == 'o') /* one */
        size = snprintf(text, sizeof text, "PUB svc.bench _INBOX.benchmark.0 %zu\r\n" PAYLOAD "\r\n", strlen(PAYLOAD));
    else if (mode == 'm') /* mux */
        size = snprintf(text, sizeof text, "PUB svc.bench _INBOX.benchmark.%010llu %zu\r\n" PAYLOAD "\r\n",
                        (unsigned long long)token, strlen(PAYLOAD));
    else
        size = snprintf(text, sizeof text,
                        "SUB _INBOX.benchmark.%010llu %llu\r\nUNSUB %llu 1\r\nPUB svc.bench _INBOX.benchmark.%010llu "
                        "%zu\r\n" PAYLOAD "\r\n",
                        (unsigned long long)token, (unsigned long long)token + 2, (unsigned long long)token + 2,
                        (unsigned long long)token, strlen(PAYLOAD));
    if (size >= (int)sizeof text) fail("request", "too long");
    say(text);
}

static int ask(int port, const char *how, double seconds, long flight) {
    char mode = strcmp(how, "own") == 0 ? 's' : how[0];
    int fd = connect_to(port, 0, mode == 's' ? "" : "SUB _INBOX.benchmark.* 1\r\n");
    uint64_t asked = 0, answered = 0, sum_asked = 0, sum_answered = 0;
    uint64_t began = now_ns(), sent = began, ended = began, until = began + (uint64_t)(seconds * 1e9);
    struct frame frame;
    for (; (long)asked < flight; asked++) {
        ask_once(mode, asked);
        sum_asked += mode == 'o' ? 0 : asked;
    }
    send_output(fd);
    while (answered < asked) {
        if (!receive(fd)) fail("ask", "the server closed the connection");
        uint64_t came = 0;
        while (next_frame(&frame)) {
            char *token = strrchr(frame.subject, '.');
            if (token == NULL) fail("not an inbox", frame.subject);
            sum_answered += strtoull(token + 1, NULL, 10);
            came++;
        }
        ended = now_ns();
        answered += came;
        if (flight == 1 && came == 1) keep_trip(ended - sent);
        if (ended < until)
            for (; came > 0; came--, asked++) {
                ask_once(mode, asked);
                sum_asked += mode == 'o' ? 0 : asked;
            }
        sent = now_ns();
        if (output_size > 0) send_output(fd);
    }
    if (answered != asked || sum_answered != sum_asked) fail("ask", "replies are doubled or wrong");
    sort_trips();
    printf("{\"requests\": %llu, \"seconds\": %.9f, \"p50_ns\": %u, \"p99_ns\": %u}\n", (unsigned long long)answered,
           (double)(ended - began) / 1e9, quantile(50), quantile(99));
    return 0;
}

int main(int count, char **words) {
    if (count == 3 && strcmp(words[1], "answer") == 0) return answer(atoi(words[2]));
    if (count == 6 && strcmp(words[1], "ask") == 0) {
        long flight = atol(words[5]);
        if (flight < 1 || flight > FLIGHT_MAX) fail("FLIGHT", words[5]);
        return ask(atoi(words[2]), words[3], atof(words[4]), flight);
    }
    fprintf(stderr, "usage: requests answer PORT | requests ask PORT one|mux|own SECONDS FLIGHT\n");
    return 2;
}

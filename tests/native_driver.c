/* Runs every function of kernels.c over odd shapes on buffers of exactly the size that each may use, so that a sanitizer
 * sees any step beyond. Compiled by test_native_sanitizer.py together with kernels.c; values are compared elsewhere. */
#include "kernels.c"
#include <stdio.h>
#include <stdlib.h>

static uint32_t state = 1;

static int pick_one(int n) { /* 0 <= number < n */
    state = state * 1664525u + 1013904223u;
    return (int)((state >> 8) % (uint32_t)n);
}

static void *all[4096];
static int held;

static void *take(int64_t bytes) {
    void *p = malloc(bytes);
    all[held++] = p;
    return p;
}

static void release(void) {
    while (held) free(all[--held]);
}

/* Elements of a type, small numbers. */
static void *numbers(int64_t n, int kind) {
    char *p = take(n * size_of(kind));
    for (int64_t i = 0; i < n; i++) {
        int value = pick_one(201) - 100;
        if (kind == INT8) p[i] = (char)value;
        else put(p, i, (float)value / 100, kind);
    }
    return p;
}

static float *scratch_of(int64_t floats) { return take(floats * sizeof(float)); }

static Matrix matrix(int64_t rows, int64_t columns, int kind, int bias) {
    int64_t width = columns + pick_one(3);
    /* The last row ends where the buffer does. */
    char *data = numbers((rows - 1) * width + columns, kind);
    return (Matrix){data, width * size_of(kind), rows, columns, bias ? numbers(rows, kind == INT8 ? FLOAT32 : kind) : NULL,
                    kind == INT8 ? numbers(rows, FLOAT32) : NULL, kind};
}

static FFN an_ffn(int64_t hidden, int64_t neurons, int kind, int gated, int rows, int bias) {
    FFN ffn = {.act = pick_one(6), .down_rows = rows};
    if (gated) ffn.gate = matrix(neurons, hidden, kind, bias);
    ffn.up = matrix(neurons, hidden, kind, bias);
    ffn.down = rows ? matrix(neurons, hidden, kind, 0) : matrix(hidden, neurons, kind, 0);
    if (rows && kind == INT8) ffn.down.scale = numbers(hidden, FLOAT32);
    if (bias) ffn.down.bias = numbers(hidden, kind == INT8 ? FLOAT32 : kind);
    return ffn;
}

/* Type of weights beside activations of a type. */
static int weights_of(int kind) { return pick_one(3) ? kind : INT8; }

/* Lists some neurons, or sets a threshold, where the layout allows it. */
static void choose(FFN *ffn) {
    int64_t neurons = ffn->up.rows;
    int what = ffn->down_rows ? pick_one(3) : 2;
    if (what == 0) {
        uint8_t *mask = take(neurons);
        int64_t count = 0, level = pick_one(5);
        for (int64_t i = 0; i < neurons; i++) count += mask[i] = pick_one(4) < level;
        int32_t *index = take(count * sizeof *index);
        ffn->count = tda_list(mask, neurons, index);
        ffn->index = index;
        if (ffn->count != count) abort();
    } else if (what == 1) {
        ffn->rule = ffn->gate.data && pick_one(2) ? GATE_THRESHOLD : CONTRIBUTION_THRESHOLD;
        ffn->norms = pick_one(2) ? numbers(neurons, FLOAT32) : NULL;
        ffn->kept = take(neurons);
        ffn->cut = (float)pick_one(3) / 10;
    }
}

static void try_ffn(int kind, int threads) {
    int64_t hidden = 1 + pick_one(140), neurons = 1 + pick_one(600), rows = pick_one(4);
    int held = weights_of(kind);
    FFN one = an_ffn(hidden, neurons, held, pick_one(2), pick_one(2), pick_one(2));
    FFN *ffns = take(rows * sizeof *ffns);
    for (int64_t row = 0; row < rows; row++) {
        ffns[row] = one;
        choose(&ffns[row]);
    }
    char *x = numbers(rows * hidden, kind), *y = take(rows * hidden * size_of(kind));
    tda_ffn(rows ? ffns : &one, rows, x, hidden * size_of(kind), y, scratch_of(tda_ffn_floats(&one, threads)), kind, threads);
}

static void try_linear(int kind, int threads) {
    int64_t rows = pick_one(4);
    Matrix weights = matrix(1 + pick_one(600), 1 + pick_one(140), weights_of(kind), pick_one(2));
    char *x = numbers(rows * weights.columns, kind), *y = take(rows * weights.rows * size_of(kind));
    float *scratch = scratch_of(tda_linear_floats(&weights, threads));
    tda_linear(&weights, rows, x, weights.columns * size_of(kind), y, scratch, kind, threads);
}

static void try_gather(int kind, int threads) {
    int64_t hidden = 1 + pick_one(140), neurons = 1 + pick_one(600);
    kind = weights_of(kind);
    FFN from = an_ffn(hidden, neurons, kind, pick_one(2), pick_one(2), 0);
    int32_t *index = take(neurons * sizeof *index);
    for (int64_t i = 0; i < neurons; i++)
        if (pick_one(2)) index[from.count++] = (int32_t)i;
    from.index = index;
    FFN to = {0};
    if (from.gate.data) to.gate = matrix(from.count + 1, hidden, kind, 0); /* a row more: none is no matrix */
    to.up = matrix(from.count + 1, hidden, kind, 0);
    to.down = matrix(hidden, from.count + 1, kind, 0);
    tda_gather(&from, &to, threads);
}

static void try_squares(int kind, int threads) {
    int64_t n = 1 + pick_one(140), tokens = pick_one(9);
    uint8_t *inside = take(tokens);
    for (int64_t t = 0; t < tokens; t++) inside[t] = pick_one(2);
    float *weights = pick_one(2) ? numbers(n, FLOAT32) : NULL, *sums = numbers(n, FLOAT32);
    tda_squares(numbers(tokens * n, kind), tokens, n, n * size_of(kind), inside, weights, pick_one(2), sums,
                scratch_of(tda_squares_floats(n, threads)), kind, threads);
}

static Norm a_norm(int64_t n, int kind) {
    Norm norm = {.eps = 1e-5f, .kind = pick_one(4)};
    if (!norm.kind) return norm;
    norm.weight = norm.kind == LAYER && pick_one(2) ? NULL : numbers(n, kind);
    norm.bias = norm.kind == LAYER && pick_one(2) ? numbers(n, kind) : NULL;
    return norm;
}

static void try_step(int kind, int threads) {
    int64_t hidden = 1 + pick_one(100), kv_heads = 1 + pick_one(3), heads = kv_heads * (1 + pick_one(6));
    int64_t width = 2 * (1 + pick_one(40)), neurons = 1 + pick_one(600), vocabulary = 1 + pick_one(150);
    int held = weights_of(kind), rotary = pick_one(2), projected = pick_one(2);
    int64_t last = projected ? 1 + pick_one(120) : hidden;
    Layer layers[3];
    memset(layers, 0, sizeof layers);
    Model m = {layers, 1 + pick_one(3), hidden, heads, kv_heads, width, rotary ? width - 2 * pick_one(2) : 0};
    m.kind = kind;
    m.last = a_norm(hidden, kind);
    m.softcap = pick_one(2) * 30;
    m.head = matrix(vocabulary, last, held, pick_one(2));
    if (projected) m.project = matrix(last, hidden, held, pick_one(2));
    for (int64_t l = 0; l < m.count; l++) {
        Layer *layer = &layers[l];
        Norm *norms[] = {&layer->attention_in, &layer->attention_out, &layer->attention_sum,
                         &layer->ffn_in,       &layer->ffn_out,       &layer->ffn_sum};
        for (int i = 0; i < 6; i++) *norms[i] = a_norm(hidden, kind);
        layer->query_norm = a_norm(width, kind);
        layer->key_norm = a_norm(width, kind);
        layer->query = matrix(heads * width, hidden, held, pick_one(2));
        layer->key = matrix(kv_heads * width, hidden, held, pick_one(2));
        layer->value = matrix(kv_heads * width, hidden, held, pick_one(2));
        layer->output = matrix(hidden, heads * width, held, pick_one(2));
        layer->ffn = an_ffn(hidden, neurons, held, pick_one(2), pick_one(2), pick_one(2));
        choose(&layer->ffn);
        layer->cached = pick_one(40);
        layer->head_stride = (layer->cached + 1) * width * size_of(kind);
        layer->keys = numbers(kv_heads * (layer->cached + 1) * width, kind);
        layer->values = numbers(kv_heads * (layer->cached + 1) * width, kind);
        layer->scale = 0.3f;
        layer->softcap = pick_one(2) * 20;
    }
    float *cosine = rotary ? numbers(m.rotary_dim, FLOAT32) : NULL, *sine = rotary ? numbers(m.rotary_dim, FLOAT32) : NULL;
    char *logits = take(vocabulary * size_of(kind)), *token = numbers(hidden, kind);
    float *scratch = scratch_of(tda_step_floats(&m, threads));
    int64_t stages = 4 * m.count + 2, middle = pick_one((int)stages + 1);
    tda_step(&m, 0, middle, token, cosine, sine, logits, scratch, threads);
    tda_step(&m, middle, stages, token, cosine, sine, logits, scratch, threads);
}

int main(int count, char **arguments) {
    int tries = count > 1 ? atoi(arguments[1]) : 100;
    int64_t sizes[5];
    tda_sizes(sizes);
    for (int i = 0; i < tries; i++) {
        int kind = pick_one(2), threads = 1 + pick_one(4);
        try_ffn(kind, threads);
        release();
        try_linear(kind, threads);
        release();
        try_gather(kind, threads);
        release();
        try_squares(kind, threads);
        release();
        try_step(kind, threads);
        release();
    }
    printf("%d tries\n", tries);
    return 0;
}

/* Decode kernels: one row of activations against weights that are read once.
 *
 * Batch-1 decode is bound by the bytes of weights, so a kernel here walks each weight row once, widens bfloat16 by a
 * shift and accumulates in float32. Rows picked by a list are read from several places of the list at once: while one stream
 * jumps over what is left out, others go on. Rows that follow each other are read from several places too, or one by one
 * with more read ahead, as the processor likes it better.
 * Every function that ends in _part is run by each thread of a parallel region with its own number; barriers stand where
 * one thread needs what another made.
 *
 * Widening bfloat16 by a shift leaves the even elements of a block in one vector and the odd ones in another. Vectors that
 * meet weights (x, and sums over rows) are therefore kept "packed": each block of 2W elements holds its even elements
 * first. In the other types the packed order is the natural one.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <omp.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR 64
#define STREAMS 6 /* places from which picked rows are read at once: there must be registers for their sums */
#elif defined(__AVX__)
#define VECTOR 32
#define STREAMS 4
#else
#define VECTOR 16
#define STREAMS 4
#endif
#define W (VECTOR / 4) /* floats in a vector */
#define STEP (2 * W)   /* elements in a packed block */
#define AHEAD 4096     /* bytes from what is read to what is prefetched, where one stream reads */
#define LEAP 1024      /* the same in each of several streams */
#define BLOCK 256      /* rows between two visits of what follows a product */
#define HEADS 4        /* heads that share keys and values, and are attended to together */
#define TOKENS 16      /* tokens between two visits of what follows a score */
#define INLINE static inline __attribute__((always_inline))
#define NOT_INLINE __attribute__((noinline))

/* Whether rows that follow each other are read from several places at once. Measured: Intel's Sapphire Rapids reads a tenth
 * faster so, and AMD's Zen 3, which has no AVX-512, a fifth faster in bfloat16 and no slower in float32; on AMD's Zen 4 a
 * single stream came out ahead of four rows side by side. */
#if !defined(READS_APART) && defined(__x86_64__)
#define READS_APART (__builtin_cpu_is("intel") || !__builtin_cpu_supports("avx512f"))
#elif !defined(READS_APART)
#define READS_APART 0
#endif

typedef float vf __attribute__((vector_size(VECTOR)));
typedef float v4 __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(VECTOR)));
typedef uint32_t vu __attribute__((vector_size(VECTOR)));
typedef float vf_any __attribute__((vector_size(VECTOR), aligned(4), may_alias));
typedef uint32_t vu_any __attribute__((vector_size(VECTOR), aligned(2), may_alias));

enum { BFLOAT16 = 0, FLOAT32 = 1, INT8 = 2 }; /* INT8: weights alone */
enum { NO_NORM = 0, RMS = 1, RMS_PLUS_ONE = 2, LAYER = 3 };
enum { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3, RELU_SQUARED = 4, IDENTITY = 5 };
enum { LISTED = 0, GATE_THRESHOLD = 1, CONTRIBUTION_THRESHOLD = 2 };

/* Weights, row by row; `stride` is the bytes from a row to the next. INT8 weights are multiplied by the `scale` of their output
 * (a row, or with `down_rows` a column), and their bias is in float32. */
typedef struct {
    const char *data;
    int64_t stride, rows, columns;
    const void *bias;
    const float *scale;
    int32_t kind;
} Matrix;

typedef struct {
    const void *weight, *bias;
    float eps;
    int32_t kind;
} Norm;

/* z = act(gate x) * (up x), or act(up x) without a gate; y = down z.
 * With `down_rows` the down projection is stored transposed: a row for each neuron. */
typedef struct {
    Matrix gate, up, down;
    const int32_t *index; /* kept neurons, ascending; NULL: all */
    int64_t count;
    const float *norms; /* CONTRIBUTION_THRESHOLD: factor of each neuron */
    uint8_t *kept;      /* thresholds: which neurons the last call kept */
    float cut;
    int32_t rule, act, down_rows;
} FFN;

typedef struct {
    Norm attention_in, attention_out, attention_sum, query_norm, key_norm, ffn_in, ffn_out, ffn_sum;
    Matrix query, key, value, output;
    FFN ffn;
    char *keys, *values; /* [kv_heads, capacity, head_dim] */
    int64_t head_stride; /* bytes from a key-value head to the next */
    int64_t cached;
    float scale, softcap;
} Layer;

typedef struct {
    const Layer *layers;
    int64_t count, hidden, heads, kv_heads, head_dim, rotary_dim;
    Norm last;
    Matrix project, head;
    float softcap;
    int32_t kind;
} Model;

/* ---- elements ---- */

INLINE int64_t size_of(int kind) { return kind == BFLOAT16 ? 2 : kind == INT8 ? 1 : 4; }

INLINE float widen(uint16_t half) {
    union { uint32_t bits; float value; } u = {(uint32_t)half << 16};
    return u.value;
}

INLINE uint16_t narrow(float value) {
    union { float value; uint32_t bits; } u = {value};
    if (value != value) return 0x7fc0;
    return (uint16_t)((u.bits + 0x7fff + (u.bits >> 16 & 1)) >> 16);
}

INLINE float element(const void *data, int64_t i, int kind) {
    if (kind == INT8) return ((const int8_t *)data)[i];
    return kind == BFLOAT16 ? widen(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

INLINE void put(void *data, int64_t i, float value, int kind) {
    if (kind == BFLOAT16) ((uint16_t *)data)[i] = narrow(value);
    else ((float *)data)[i] = value;
}

INLINE void put_all(void *restrict data, const float *restrict values, int64_t n, int kind) {
    if (kind == BFLOAT16)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)data)[i] = narrow(values[i]);
    else memcpy(data, values, n * sizeof *values);
}

/* What storing and loading again makes of a value. */
INLINE float rounded(float value, int kind) { return kind == BFLOAT16 ? widen(narrow(value)) : value; }

INLINE vf load(const float *data) { return *(const vf_any *)data; }
INLINE void store(float *data, vf value) { *(vf_any *)data = value; }

/* W bytes as floats. Compilers take bytes apart one by one for `__builtin_convertvector`, so they are told how. */
INLINE vf widen_bytes(const char *bytes) {
#if defined(__AVX512F__)
    vi wide = (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)bytes));
#elif defined(__AVX2__)
    vi wide = (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
#else
    vi wide;
    for (int i = 0; i < W; i++) wide[i] = ((const int8_t *)bytes)[i];
#endif
    return __builtin_convertvector(wide, vf);
}

/* A block of 2W elements in packed order. */
INLINE void load_block(const char *row, int64_t i, int kind, vf *a, vf *b) {
    if (kind == BFLOAT16) {
        vu both = *(const vu_any *)(row + 2 * i);
        *a = (vf)(both << 16);
        *b = (vf)(both & 0xffff0000u);
    } else if (kind == INT8) {
        *a = widen_bytes(row + i);
        *b = widen_bytes(row + i + W);
    } else {
        *a = load((const float *)row + i);
        *b = load((const float *)row + i + W);
    }
}

/* a where the mask is set, b elsewhere. */
INLINE vf pick(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }

/* What a vector's fours of elements add up to. Halves are added, so that no addition waits for more than a few others;
 * compilers take them through memory, so they are told how. */
#if defined(__AVX__)
INLINE v4 folded_half(__m256 v) { return (v4)_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }
#endif

INLINE v4 folded(vf v) {
#if defined(__AVX512F__)
    __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)v, 1));
    return folded_half(_mm256_add_ps(_mm512_castps512_ps256((__m512)v), upper));
#elif defined(__AVX__)
    return folded_half((__m256)v);
#else
    return (v4)v;
#endif
}

INLINE float sum_of_four(v4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }

INLINE float sum(vf v) { return sum_of_four(folded(v)); }

INLINE int64_t blocks_end(int64_t n) { return n - n % STEP; }

INLINE int64_t packed_place(int64_t i, int64_t n, int kind) {
    if (kind != BFLOAT16 || i >= blocks_end(n)) return i;
    int64_t within = i % STEP;
    return i - within + within / 2 + within % 2 * W;
}

static void pack(const float *x, int64_t n, int kind, float *packed) {
    if (kind != BFLOAT16) {
        memcpy(packed, x, n * sizeof *x);
        return;
    }
    int64_t i = 0;
    for (; i < blocks_end(n); i += STEP)
        for (int k = 0; k < W; k++) {
            packed[i + k] = x[i + 2 * k];
            packed[i + W + k] = x[i + 2 * k + 1];
        }
    for (; i < n; i++) packed[i] = x[i];
}

static void unpack(const float *packed, int64_t n, int kind, float *x) {
    if (kind != BFLOAT16) {
        memcpy(x, packed, n * sizeof *x);
        return;
    }
    int64_t i = 0;
    for (; i < blocks_end(n); i += STEP)
        for (int k = 0; k < W; k++) {
            x[i + 2 * k] = packed[i + k];
            x[i + 2 * k + 1] = packed[i + W + k];
        }
    for (; i < n; i++) x[i] = packed[i];
}

/* ---- rows against a vector ---- */

INLINE void prefetch(const char *row, int64_t i, int kind) {
    __builtin_prefetch(row + size_of(kind) * i);
    if (kind == FLOAT32) __builtin_prefetch(row + size_of(kind) * (i + W));
}

/* What elements [from, to) add to a dot product. */
static NOT_INLINE float dot_end(const char *row, const float *x, int64_t from, int64_t to, int kind) {
    float total = 0;
    for (int64_t i = from; i < to; i++) total += element(row, i, kind) * x[i];
    return total;
}

/* Dot products of `count` rows with packed x; those of `ahead` are prefetched. */
INLINE void dot_rows(const char *const *row, const char *const *ahead, int count, const float *x, int64_t n, int kind,
                     float *out) {
    vf even[STREAMS], odd[STREAMS];
    for (int r = 0; r < count; r++) even[r] = odd[r] = (vf){0};
    int64_t i = 0;
    for (; i < blocks_end(n); i += STEP) {
        vf x0 = load(x + i), x1 = load(x + i + W);
        for (int r = 0; r < count; r++) {
            vf a, b;
            prefetch(ahead[r], i, kind);
            load_block(row[r], i, kind, &a, &b);
            even[r] += a * x0;
            odd[r] += b * x1;
        }
    }
    for (int r = 0; r < count; r++) out[r] = sum(even[r] + odd[r]);
    for (int r = 0; r < count && i < n; r++) out[r] += dot_end(row[r], x, i, n, kind);
}

/* Block i of packed y += that of factor·row. */
INLINE void add_block(const char *const *row, int count, const vf *factor, int64_t i, int kind, float *y) {
    vf y0 = load(y + i), y1 = load(y + i + W);
    for (int r = 0; r < count; r++) {
        vf a, b;
        load_block(row[r], i, kind, &a, &b);
        y0 += factor[r] * a;
        y1 += factor[r] * b;
    }
    store(y + i, y0);
    store(y + i + W, y1);
}

/* Packed y += sum of factor·row; what lies LEAP bytes on in a row is prefetched, and in its last LEAP bytes `ahead`. */
INLINE void add_rows(const char *const *row, const char *const *ahead, int count, const float *factor, int64_t n, int kind,
                     float *y) {
    int64_t i = 0, turn = blocks_end(n) - LEAP / size_of(kind);
    vf factors[STREAMS]; /* a copy, which stores to y cannot change */
    for (int r = 0; r < count; r++) factors[r] = (vf){0} + factor[r];
    for (; i < turn; i += STEP) {
        for (int r = 0; r < count; r++) prefetch(row[r] + LEAP, i, kind);
        add_block(row, count, factors, i, kind, y);
    }
    for (; i < blocks_end(n); i += STEP) {
        for (int r = 0; r < count; r++) prefetch(ahead[r], i, kind);
        add_block(row, count, factors, i, kind, y);
    }
    for (; i < n; i++)
        for (int r = 0; r < count; r++) y[i] += factor[r] * element(row[r], i, kind);
}

INLINE const char *row_at(const Matrix *matrix, int64_t row) { return matrix->data + row * matrix->stride; }

INLINE float bias_at(const Matrix *matrix, int64_t row) {
    return element(matrix->bias, row, matrix->kind == INT8 ? FLOAT32 : matrix->kind);
}

/* Dot products of a row from each stream with packed x; those of `ahead` are prefetched. */
static void dot_streams(const char *const *row, const char *const *ahead, const float *x, int64_t n, int kind, float *out) {
    if (kind == BFLOAT16) dot_rows(row, ahead, STREAMS, x, n, BFLOAT16, out);
    else if (kind == FLOAT32) dot_rows(row, ahead, STREAMS, x, n, FLOAT32, out);
    else dot_rows(row, ahead, STREAMS, x, n, INT8, out);
}

INLINE void dot_kind(const Matrix *matrix, int64_t first, int64_t count, const float *x, int kind, float *out) {
    int64_t part = READS_APART ? count / STREAMS : 0;
    for (int64_t i = 0; i < part; i++) {
        const char *row[STREAMS], *ahead[STREAMS];
        float dots[STREAMS];
        for (int r = 0; r < STREAMS; r++) ahead[r] = (row[r] = row_at(matrix, first + r * part + i)) + LEAP;
        dot_streams(row, ahead, x, matrix->columns, kind, dots);
        for (int r = 0; r < STREAMS; r++) out[r * part + i] = dots[r];
    }
    for (int64_t i = part * STREAMS; i < count; i++) {
        const char *row = row_at(matrix, first + i), *ahead = row + AHEAD;
        dot_rows(&row, &ahead, 1, x, matrix->columns, kind, out + i);
    }
    for (int64_t i = 0; i < count; i++) {
        if (kind == INT8) out[i] *= matrix->scale[first + i];
        if (matrix->bias) out[i] += bias_at(matrix, first + i);
    }
}

/* out = x, packed, times `count` rows from `first` on, + bias. */
static void dot_all(const Matrix *matrix, int64_t first, int64_t count, const float *x, float *out) {
    if (matrix->kind == BFLOAT16) dot_kind(matrix, first, count, x, BFLOAT16, out);
    else if (matrix->kind == FLOAT32) dot_kind(matrix, first, count, x, FLOAT32, out);
    else dot_kind(matrix, first, count, x, INT8, out);
}

/* out = x, packed, times picked rows, as many as there are streams or fewer, + bias. */
static void dot_picked(const Matrix *matrix, const int64_t *picked, const char *const *ahead, int count, const float *x,
                       float *out) {
    const char *row[STREAMS];
    for (int r = 0; r < count; r++) row[r] = row_at(matrix, picked[r]);
    if (count == STREAMS) dot_streams(row, ahead, x, matrix->columns, matrix->kind, out);
    else
        for (int r = 0; r < count; r++) dot_rows(row + r, ahead + r, 1, x, matrix->columns, matrix->kind, out + r);
    for (int r = 0; r < count; r++) {
        if (matrix->kind == INT8) out[r] *= matrix->scale[picked[r]];
        if (matrix->bias) out[r] += bias_at(matrix, picked[r]);
    }
}

/* Packed y += sum of factor·row over picked rows, as many as there are streams or fewer; INT8 without its scale. */
static void add_picked(const Matrix *matrix, const int64_t *picked, const char *const *ahead, int count, const float *factor,
                       float *y) {
    const char *row[STREAMS];
    int64_t n = matrix->columns;
    for (int r = 0; r < count; r++) row[r] = row_at(matrix, picked[r]);
    if (count == STREAMS && matrix->kind == BFLOAT16) add_rows(row, ahead, STREAMS, factor, n, BFLOAT16, y);
    else if (count == STREAMS && matrix->kind == INT8) add_rows(row, ahead, STREAMS, factor, n, INT8, y);
    else if (count == STREAMS) add_rows(row, ahead, STREAMS, factor, n, FLOAT32, y);
    else
        for (int r = 0; r < count; r++) add_rows(row + r, ahead + r, 1, factor + r, n, matrix->kind, y);
}

/* This thread's share of `total` pieces, in whole groups. */
INLINE void share_of(int64_t total, int64_t group, int thread, int threads, int64_t *begin, int64_t *end) {
    int64_t groups = (total + group - 1) / group;
    *begin = groups * thread / threads * group;
    *end = groups * (thread + 1) / threads * group;
    if (*begin > total) *begin = total;
    if (*end > total) *end = total;
}

/* out = matrix x (natural order), this thread's rows of it. */
static void linear_part(const Matrix *matrix, const float *x, int thread, int threads, float *out) {
    int64_t begin, end;
    share_of(matrix->rows, 1, thread, threads, &begin, &end);
    dot_all(matrix, begin, end - begin, x, out + begin);
}

/* ---- activation functions ---- */

/* e^x to about two units in the last place; 0 below the range of float32, near its largest number above. */
INLINE vf exponential(vf x) {
    const vf zero = {0};
    vf top = zero + 88.72f, bottom = zero - 87.3f;
    x = pick(x > top, top, x);
    vi tiny = x < bottom;
    x = pick(tiny, bottom, x);
    vf n = x * 1.44269504f + 12582912.0f; /* rounds to the nearest integer in the low bits */
    vi power = (vi)n - 0x4b400000;
    n -= 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return pick(tiny, zero, (vf)((vi)p + (power << 23)));
}

static vf activated(vf x, int act) {
    const vf zero = {0};
    switch (act) {
    case SILU: return x / (1.0f + exponential(-x));
    case GELU_TANH: return x / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x)));
    case RELU: return pick(x <= zero, zero, x); /* so, NaN stays NaN */
    case RELU_SQUARED: return pick(x <= zero, zero, x * x);
    case GELU:
        for (int i = 0; i < W; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.70710678f));
        return x;
    default: return x;
    }
}

/* In place; there is room up to the next multiple of W. */
static void activate(float *values, int64_t n, int act) {
    for (int64_t i = 0; i < n; i += W) store(values + i, activated(load(values + i), act));
}

/* ---- feed-forward network ---- */

/* The rows that a stream reads of each neuron, one of every matrix, and for each row where what is prefetched meanwhile lies:
 * LEAP bytes on in the row itself, or, from its end on or where rows are shorter, in a row that follows. */
typedef struct {
    int count;
    const Matrix *matrix[3];
    struct { const Matrix *matrix; int64_t offset; int later; } ahead[3]; /* later: that row is the next neuron's */
} Rows;

static Rows rows_of(const FFN *ffn, int known) {
    Rows rows = {0};
    int gated = ffn->gate.data != NULL, whole = ffn->rule == CONTRIBUTION_THRESHOLD;
    if (gated && !known) rows.matrix[rows.count++] = &ffn->gate;
    if (!whole && (gated || !known)) rows.matrix[rows.count++] = &ffn->up;
    rows.matrix[rows.count++] = &ffn->down;
    int64_t bytes = ffn->up.columns * size_of(ffn->up.kind), short_of = bytes < LEAP ? 0 : bytes - LEAP;
    int on = short_of ? 1 : (LEAP + bytes - 1) / bytes;
    for (int i = 0; i < rows.count; i++) {
        int last = i == rows.count - 1, same = short_of && !last, place = same ? i : i + on;
        rows.ahead[i].matrix = rows.matrix[place % rows.count];
        rows.ahead[i].offset = same ? LEAP : -short_of;
        rows.ahead[i].later = place >= rows.count;
    }
    return rows;
}

/* Packed y += what some neurons of a list (NULL: of all) give, at most one for each stream, by their places in it.
 * `known`, by place, are activations of the gate that are there already, or of whole neurons where their size decided. */
static void add_few(const FFN *ffn, const Rows *rows, const int32_t *list, int64_t end, const int64_t *place, int count,
                    const float *known, const float *x, float *y) {
    float z[W] = {0}, u[STREAMS];
    int64_t picked[STREAMS];
    const char *ahead[3][STREAMS];
    for (int r = 0; r < count; r++) {
        int64_t later = place[r] + 1 < end ? place[r] + 1 : place[r];
        picked[r] = list ? list[place[r]] : place[r];
        if (list) later = list[later];
        for (int i = 0; i < rows->count; i++)
            ahead[i][r] = row_at(rows->ahead[i].matrix, rows->ahead[i].later ? later : picked[r]) + rows->ahead[i].offset;
    }
    if (known)
        for (int r = 0; r < count; r++) z[r] = known[place[r]];
    else {
        dot_picked(rows->matrix[0], picked, ahead[0], count, x, z);
        activate(z, W, ffn->act);
    }
    if (ffn->gate.data && ffn->rule != CONTRIBUTION_THRESHOLD) {
        dot_picked(&ffn->up, picked, ahead[rows->count - 2], count, x, u);
        for (int r = 0; r < count; r++) z[r] *= u[r];
    }
    add_picked(&ffn->down, picked, ahead[rows->count - 1], count, z, y);
}

/* Packed y += what neurons [begin, end) of a list give. Each stream reads a part of the list from end to end: rows of gate, up
 * and down that lie side by side, and neurons that follow each other, are one stretch of memory to it. */
static void add_neurons(const FFN *ffn, const int32_t *list, int64_t begin, int64_t end, const float *known, const float *x,
                        float *y) {
    int64_t part = (end - begin) / STREAMS, place[STREAMS];
    Rows rows = rows_of(ffn, known != NULL);
    for (int64_t i = 0; i < part; i++) {
        for (int r = 0; r < STREAMS; r++) place[r] = begin + r * part + i;
        add_few(ffn, &rows, list, end, place, STREAMS, known, x, y);
    }
    int rest = 0;
    for (int64_t i = begin + part * STREAMS; i < end; i++) place[rest++] = i;
    add_few(ffn, &rows, list, end, place, rest, known, x, y);
}

/* Packed y += the part of the down projection that neurons [begin, end) of the list give. Needs `down_rows`. */
static void ffn_rows(const FFN *ffn, const float *x, int64_t begin, int64_t end, float *y) {
    float z[BLOCK], u[BLOCK];
    int32_t chosen[BLOCK];
    int gated = ffn->gate.data != NULL;
    if (ffn->rule == LISTED) {
        add_neurons(ffn, ffn->index, begin, end, NULL, x, y);
        return;
    }
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t n = end - start < BLOCK ? end - start : BLOCK, kept = 0;
        memset(z, 0, sizeof z);
        dot_all(gated ? &ffn->gate : &ffn->up, start, n, x, z);
        activate(z, n, ffn->act);
        if (gated && ffn->rule == CONTRIBUTION_THRESHOLD) {
            dot_all(&ffn->up, start, n, x, u);
            for (int64_t i = 0; i < n; i++) z[i] *= u[i];
        }
        for (int64_t i = 0; i < n; i++) {
            float size = fabsf(z[i]) * (ffn->norms ? ffn->norms[start + i] : 1.0f);
            int keep = !(size < ffn->cut); /* a nan is kept, so that logits tell of it */
            ffn->kept[start + i] = keep;
            chosen[kept] = start + i;
            z[kept] = z[i];
            kept += keep;
        }
        add_neurons(ffn, chosen, 0, kept, z, x, y);
    }
}

/* Feed-forward network of one row: x packed; y natural [hidden], the same in every thread.
 * `shared` holds threads·hidden floats, or neurons floats where the down projection is stored as the model has it. */
static void ffn_part(const FFN *ffn, const float *x, int thread, int threads, float *shared, float *own,
                     float *y) {
    int64_t total = ffn->index ? ffn->count : ffn->up.rows, hidden = ffn->down_rows ? ffn->down.columns : ffn->down.rows;
    int64_t begin, end;
    if (ffn->down_rows) {
        share_of(total, 1, thread, threads, &begin, &end);
        float *part = shared + thread * hidden;
        memset(part, 0, hidden * sizeof *part);
        ffn_rows(ffn, x, begin, end, part);
#pragma omp barrier
        memcpy(own, shared, hidden * sizeof *own);
        for (int t = 1; t < threads; t++)
            for (int64_t i = 0; i < hidden; i++) own[i] += shared[t * hidden + i];
        unpack(own, hidden, ffn->down.kind, y);
        if (ffn->down.kind == INT8)
            for (int64_t i = 0; i < hidden; i++) y[i] *= ffn->down.scale[i];
        if (ffn->down.bias)
            for (int64_t i = 0; i < hidden; i++) y[i] += bias_at(&ffn->down, i);
        return;
    }
    float u[BLOCK], z[BLOCK];
    int gated = ffn->gate.data != NULL;
    share_of(total, STEP, thread, threads, &begin, &end);
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t n = end - start < BLOCK ? end - start : BLOCK;
        memset(z, 0, sizeof z);
        dot_all(gated ? &ffn->gate : &ffn->up, start, n, x, z);
        activate(z, n, ffn->act);
        if (gated) {
            dot_all(&ffn->up, start, n, x, u);
            for (int64_t i = 0; i < n; i++) z[i] *= u[i];
        }
        for (int64_t i = 0; i < n; i++) shared[packed_place(start + i, total, ffn->down.kind)] = z[i];
    }
#pragma omp barrier
    linear_part(&ffn->down, shared, thread, threads, shared + (total + W - 1) / W * W);
#pragma omp barrier
    memcpy(y, shared + (total + W - 1) / W * W, hidden * sizeof *y);
}

/* ---- norms, attention ---- */

static float mean_square(const float *x, int64_t n, float centre) {
    vf total = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        vf v = load(x + i) - centre;
        total += v * v;
    }
    for (; i < n; i++) rest += (x[i] - centre) * (x[i] - centre);
    return (sum(total) + rest) / n;
}

static float mean(const float *x, int64_t n) {
    vf total = {0};
    float rest = 0;
    int64_t i = 0;
    for (; i + W <= n; i += W) total += load(x + i);
    for (; i < n; i++) rest += x[i];
    return (sum(total) + rest) / n;
}

static void normalise(const Norm *norm, const float *x, int64_t n, int kind, float *out) {
    float centre = norm->kind == LAYER ? mean(x, n) : 0;
    float factor = 1 / sqrtf(mean_square(x, n, centre) + norm->eps), one = norm->kind == RMS_PLUS_ONE;
    for (int64_t i = 0; i < n; i++)
        out[i] = (x[i] - centre) * factor * (norm->weight ? one + element(norm->weight, i, kind) : 1.0f);
    if (norm->bias)
        for (int64_t i = 0; i < n; i++) out[i] += element(norm->bias, i, kind);
}

/* Rotate the first `rotary` elements of each head by halves. */
static void rotate(float *x, int64_t rotary, const float *cosine, const float *sine) {
    int64_t half = rotary / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

/* Scratch of a step, cut from one buffer: what threads share, then what each has for itself. */
typedef struct {
    float *heads, *scores, *mixed, *output, *ffn; /* shared */
    float *residual, *x, *packed, *query, *key;   /* this thread's */
} Scratch;

INLINE int64_t padded(int64_t n) { return (n + 15) / 16 * 16 + 16; }

static int64_t ffn_shared(const FFN *ffn, int64_t hidden, int threads) {
    return ffn->down_rows ? padded(threads * hidden) : padded(ffn->up.rows + hidden + W);
}

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t scratch_floats(const Model *m, int thread, int threads, float *base, Scratch *s) {
    int64_t cached = 0, ffn = 0, query = m->heads * m->head_dim, key = m->kv_heads * m->head_dim, at = 0;
    for (int64_t l = 0; l < m->count; l++) {
        cached = largest(cached, m->layers[l].cached);
        ffn = largest(ffn, ffn_shared(&m->layers[l].ffn, m->hidden, threads));
    }
    int64_t widest = largest(largest(m->hidden, query), m->project.rows);
    int64_t sizes[] = {query + 2 * key, m->heads * (cached + 1), query, largest(m->hidden, m->project.rows), ffn};
    float **places[] = {&s->heads, &s->scores, &s->mixed, &s->output, &s->ffn};
    int64_t own_sizes[] = {m->hidden, widest, widest, query, key};
    float **own_places[] = {&s->residual, &s->x, &s->packed, &s->query, &s->key};
    for (int i = 0; i < 5; at += padded(sizes[i++])) *places[i] = base ? base + at : NULL;
    for (int t = 0; t < threads; t++)
        for (int i = 0; i < 5; at += padded(own_sizes[i++]))
            if (t == thread) *own_places[i] = base ? base + at : NULL;
    return at;
}

/* Products of a key with the queries of `count` heads, each as four parts; all in packed order. */
INLINE void dot_key(const char *key, const float *queries, int count, int64_t width, int kind, v4 *parts) {
    vf sums[HEADS];
    int64_t i = 0;
    for (int h = 0; h < count; h++) sums[h] = (vf){0};
    for (; i < blocks_end(width); i += STEP) {
        vf a, b;
        load_block(key, i, kind, &a, &b);
        for (int h = 0; h < count; h++) {
            sums[h] += a * load(queries + h * width + i);
            sums[h] += b * load(queries + h * width + i + W);
        }
    }
    for (int h = 0; h < count; h++) parts[h * TOKENS] = folded(sums[h]);
    for (int h = 0; h < count && i < width; h++) parts[h * TOKENS][0] += dot_end(key, queries + h * width, i, width, kind);
}

/* Scores of a block of tokens from the parts of their products. */
static NOT_INLINE void finish_scores(const Layer *layer, const v4 *parts, int64_t n, float *out) {
    for (int64_t t = 0; t < n; t++) out[t] = sum_of_four(parts[t]) * layer->scale;
    if (layer->softcap > 0)
        for (int64_t t = 0; t < n; t++) out[t] = tanhf(out[t] / layer->softcap) * layer->softcap;
}

/* Scores [count, cached + 1] of heads that share a key-value head, for tokens [begin, end); token `cached` is the new one,
 * whose key is `fresh`. */
INLINE void score_heads(const Layer *layer, const char *keys, const float *fresh, const float *queries, int count,
                        int64_t width, int64_t begin, int64_t end, int kind, float *scores) {
    int64_t row = width * size_of(kind), total = layer->cached + 1;
    v4 parts[HEADS * TOKENS];
    for (int64_t start = begin; start < end; start += TOKENS) {
        int64_t n = end - start < TOKENS ? end - start : TOKENS, old = start + n > layer->cached ? n - 1 : n;
        for (int64_t t = 0; t < old; t++) {
            const char *key = keys + (start + t) * row;
            for (int64_t byte = 0; byte < row; byte += 64) __builtin_prefetch(key + AHEAD + byte);
            dot_key(key, queries, count, width, kind, parts + t);
        }
        if (old < n) dot_key((const char *)fresh, queries, count, width, FLOAT32, parts + old);
        for (int h = 0; h < count; h++) finish_scores(layer, parts + h * TOKENS, n, scores + h * total + start);
    }
}

/* The same for all heads of one key-value head. */
INLINE void score_kind(const Model *m, const Layer *layer, const Scratch *s, int64_t head, int64_t begin, int64_t end,
                       int kind) {
    int64_t group = m->heads / m->kv_heads, width = m->head_dim, total = layer->cached + 1, h = head * group;
    const char *keys = layer->keys + head * layer->head_stride;
    const float *fresh = s->key + head * width;
    for (; h + HEADS <= (head + 1) * group; h += HEADS)
        score_heads(layer, keys, fresh, s->query + h * width, HEADS, width, begin, end, kind, s->scores + h * total);
    for (; h < (head + 1) * group; h++)
        score_heads(layer, keys, fresh, s->query + h * width, 1, width, begin, end, kind, s->scores + h * total);
}

static void score_tokens(const Model *m, const Layer *layer, const Scratch *s, int64_t head, int64_t begin, int64_t end,
                         int kind) {
    if (kind == BFLOAT16) score_kind(m, layer, s, head, begin, end, BFLOAT16);
    else score_kind(m, layer, s, head, begin, end, FLOAT32);
}

static void softmax(float *x, int64_t n) {
    float top = x[0], total = 0;
    vf tops = (vf){0} + top, sums = {0};
    int64_t i = 0;
    for (; i + W <= n; i += W) tops = pick(load(x + i) > tops, load(x + i), tops);
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    for (int k = 0; k < W; k++) top = tops[k] > top ? tops[k] : top;
    for (i = 0; i + W <= n; i += W) {
        vf e = exponential(load(x + i) - top);
        store(x + i, e);
        sums += e;
    }
    for (; i < n; i++) total += x[i] = expf(x[i] - top);
    total = 1 / (total + sum(sums));
    for (i = 0; i < n; i++) x[i] *= total;
}

/* The elements of a head's values that fill no block, mixed by its scores. */
static NOT_INLINE void mix_end(const Layer *layer, const char *values, const float *scores, int64_t width, int64_t from,
                               int kind, float *sums) {
    for (int64_t t = 0; t < layer->cached; t++)
        for (int64_t i = from; i < width; i++) sums[i - from] += scores[t] * element(values, t * width + i, kind);
}

/* out = sums + the new token's share of its values. */
static NOT_INLINE void add_fresh(const float *sums, float score, const float *fresh, int64_t n, int kind, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = sums[i] + score * rounded(fresh[i], kind);
}

/* A block, from element `from` on, of the values of one key-value head, mixed for `count` of its heads by their scores
 * [count, cached + 1]; out [count, width]. */
INLINE void mix_heads(const Layer *layer, const char *values, const float *scores, int count, int64_t width, int64_t from,
                      const float *fresh, int kind, float *out) {
    int64_t n = width - from < STEP ? width - from : STEP, total = layer->cached + 1;
    float sums[HEADS][STEP] = {0};
    if (n == STEP) {
        vf even[HEADS], odd[HEADS];
        for (int h = 0; h < count; h++) even[h] = odd[h] = (vf){0};
        for (int64_t t = 0; t < layer->cached; t++) {
            vf a, b;
            const char *row = values + t * width * size_of(kind);
            prefetch(row + AHEAD, from, kind);
            load_block(row, from, kind, &a, &b);
            for (int h = 0; h < count; h++) {
                even[h] += scores[h * total + t] * a;
                odd[h] += scores[h * total + t] * b;
            }
        }
        for (int h = 0; h < count; h++) {
            float packed[STEP];
            store(packed, even[h]);
            store(packed + W, odd[h]);
            unpack(packed, STEP, kind, sums[h]);
        }
    } else {
        for (int h = 0; h < count; h++) mix_end(layer, values, scores + h * total, width, from, kind, sums[h]);
    }
    for (int h = 0; h < count; h++)
        add_fresh(sums[h], scores[h * total + layer->cached], fresh + from, n, kind, out + h * width + from);
}

/* The same for all heads of one key-value head. */
INLINE void mix_kind(const Model *m, const Layer *layer, const Scratch *s, int64_t head, int64_t from, const float *fresh,
                     int kind) {
    int64_t group = m->heads / m->kv_heads, width = m->head_dim, total = layer->cached + 1, h = head * group;
    const char *values = layer->values + head * layer->head_stride;
    for (; h + HEADS <= (head + 1) * group; h += HEADS)
        mix_heads(layer, values, s->scores + h * total, HEADS, width, from, fresh, kind, s->mixed + h * width);
    for (; h < (head + 1) * group; h++)
        mix_heads(layer, values, s->scores + h * total, 1, width, from, fresh, kind, s->mixed + h * width);
}

static void mix_values(const Model *m, const Layer *layer, const Scratch *s, int64_t head, int64_t from, const float *fresh,
                       int kind) {
    if (kind == BFLOAT16) mix_kind(m, layer, s, head, from, fresh, BFLOAT16);
    else mix_kind(m, layer, s, head, from, fresh, FLOAT32);
}

/* Projections of one row to query, key and value: s->residual goes in, s->heads comes out. */
static void project_part(const Model *m, const Layer *layer, const Scratch *s, int kind, int thread, int threads) {
    int64_t query = m->heads * m->head_dim, key = m->kv_heads * m->head_dim;
    if (layer->attention_in.kind) normalise(&layer->attention_in, s->residual, m->hidden, kind, s->x);
    else memcpy(s->x, s->residual, m->hidden * sizeof(float));
    pack(s->x, m->hidden, layer->query.kind, s->packed);
    linear_part(&layer->query, s->packed, thread, threads, s->heads);
    linear_part(&layer->key, s->packed, thread, threads, s->heads + query);
    linear_part(&layer->value, s->packed, thread, threads, s->heads + query + key);
#pragma omp barrier
}

/* Attention of one row over the cached tokens and itself: s->heads goes in, s->mixed comes out. */
static void attention_part(const Model *m, const Layer *layer, const Scratch *s, const float *cosine, const float *sine,
                           int kind, int thread, int threads) {
    int64_t width = m->head_dim, query = m->heads * width, key = m->kv_heads * width, total = layer->cached + 1;
    int64_t begin, end;
    /* Every thread turns all heads by itself: cheaper than waiting for one that does. */
    const float *fresh_value = s->heads + query + key;
    for (int64_t h = 0; h < m->heads; h++) {
        float *at = s->x;
        memcpy(at, s->heads + h * width, width * sizeof *at);
        if (layer->query_norm.kind) normalise(&layer->query_norm, s->heads + h * width, width, kind, at);
        if (cosine) rotate(at, m->rotary_dim, cosine, sine);
        pack(at, width, kind, s->query + h * width);
    }
    for (int64_t h = 0; h < m->kv_heads; h++) {
        float *at = s->x;
        memcpy(at, s->heads + query + h * width, width * sizeof *at);
        if (layer->key_norm.kind) normalise(&layer->key_norm, s->heads + query + h * width, width, kind, at);
        if (cosine) rotate(at, m->rotary_dim, cosine, sine);
        for (int64_t i = 0; i < width; i++) at[i] = rounded(at[i], kind);
        pack(at, width, kind, s->key + h * width);
        if (thread == 0) {
            int64_t place = h * layer->head_stride + layer->cached * width * size_of(kind);
            put_all(layer->keys + place, at, width, kind);
            put_all(layer->values + place, fresh_value + h * width, width, kind);
        }
    }
    share_of(m->kv_heads * total, 1, thread, threads, &begin, &end);
    for (int64_t at = begin; at < end;) {
        int64_t head = at / total, from = at % total, until = end - at + from < total ? end - at + from : total;
        score_tokens(m, layer, s, head, from, until, kind);
        at += until - from;
    }
#pragma omp barrier
    share_of(m->heads, 1, thread, threads, &begin, &end);
    for (int64_t h = begin; h < end; h++) softmax(s->scores + h * total, total);
#pragma omp barrier
    /* Values are summed in pieces of a block of every key-value head. */
    int64_t pieces = (width + STEP - 1) / STEP;
    share_of(m->kv_heads * pieces, 1, thread, threads, &begin, &end);
    for (int64_t item = begin; item < end; item++)
        mix_values(m, layer, s, item / pieces, item % pieces * STEP, fresh_value + item / pieces * width, kind);
#pragma omp barrier
}

/* Output projection of the attention: s->mixed goes in, s->output comes out. */
static void output_part(const Model *m, const Layer *layer, const Scratch *s, int thread, int threads) {
    pack(s->mixed, m->heads * m->head_dim, layer->output.kind, s->packed);
    linear_part(&layer->output, s->packed, thread, threads, s->output);
#pragma omp barrier
}

/* residual += y, with the norms that a family puts before and after the sum. */
static void add_to_residual(const Norm *before, const Norm *after, float *y, const Scratch *s, int64_t n, int kind) {
    if (before->kind) normalise(before, y, n, kind, s->x);
    else memcpy(s->x, y, n * sizeof *y);
    for (int64_t i = 0; i < n; i++) s->residual[i] += s->x[i];
    if (!after->kind) return;
    memcpy(s->x, s->residual, n * sizeof *y);
    normalise(after, s->x, n, kind, s->residual);
}

static void feed_forward_part(const Model *m, const Layer *layer, const Scratch *s, int kind, int thread, int threads) {
    add_to_residual(&layer->attention_out, &layer->attention_sum, s->output, s, m->hidden, kind);
    if (layer->ffn_in.kind) normalise(&layer->ffn_in, s->residual, m->hidden, kind, s->x);
    else memcpy(s->x, s->residual, m->hidden * sizeof(float));
    pack(s->x, m->hidden, layer->ffn.up.kind, s->packed);
    ffn_part(&layer->ffn, s->packed, thread, threads, s->ffn, s->packed, s->x);
    memcpy(s->packed, s->x, m->hidden * sizeof(float));
    add_to_residual(&layer->ffn_out, &layer->ffn_sum, s->packed, s, m->hidden, kind);
}

static void head_part(const Model *m, const Scratch *s, int kind, int thread, int threads, char *logits) {
    float out[BLOCK];
    int64_t begin, end, n = m->hidden;
    if (m->last.kind) normalise(&m->last, s->residual, n, kind, s->x);
    else memcpy(s->x, s->residual, n * sizeof(float));
    pack(s->x, n, m->project.data ? m->project.kind : m->head.kind, s->packed);
    if (m->project.data) {
#pragma omp barrier
        linear_part(&m->project, s->packed, thread, threads, s->output);
#pragma omp barrier
        n = m->project.rows;
        pack(s->output, n, m->head.kind, s->packed);
    }
    share_of(m->head.rows, STEP, thread, threads, &begin, &end);
    for (int64_t start = begin; start < end; start += BLOCK) {
        int64_t count = end - start < BLOCK ? end - start : BLOCK;
        dot_all(&m->head, start, count, s->packed, out);
        for (int64_t i = 0; i < count; i++) {
            float value = m->softcap > 0 ? tanhf(out[i] / m->softcap) * m->softcap : out[i];
            put(logits, start + i, value, kind);
        }
    }
}

/* Stages [from, to) of a decode step: 0 takes the embedded token in; of layer l, 1 + 4l projects, 2 + 4l attends, 3 + 4l is
 * the output projection and 4 + 4l the feed-forward network; the last is the head. Between stages the scratch holds all that
 * later ones need. */
static void step_part(const Model *m, int64_t from, int64_t to, const char *hidden, const float *cosine, const float *sine,
                      char *logits, float *base, int kind, int thread, int threads) {
    Scratch s;
    scratch_floats(m, thread, threads, base, &s);
    if (from == 0)
        for (int64_t i = 0; i < m->hidden; i++) s.residual[i] = element(hidden, i, kind);
    for (int64_t stage = from > 0 ? from : 1; stage < to; stage++) {
        if (stage > 4 * m->count) {
            head_part(m, &s, kind, thread, threads, logits);
            break;
        }
        const Layer *layer = &m->layers[(stage - 1) / 4];
        switch ((stage - 1) % 4) {
        case 0: project_part(m, layer, &s, kind, thread, threads); break;
        case 1: attention_part(m, layer, &s, cosine, sine, kind, thread, threads); break;
        case 2: output_part(m, layer, &s, thread, threads); break;
        default: feed_forward_part(m, layer, &s, kind, thread, threads);
        }
    }
}

/* ---- what is called from outside ---- */

/* Floats of scratch that `tda_step` needs. */
int64_t tda_step_floats(const Model *m, int threads) {
    Scratch s;
    return scratch_floats(m, 0, threads, NULL, &s);
}

/* Stages [from, to) of one decode step of a model: hidden [hidden] -> logits [head.rows]; key-value caches grow by a token. */
void tda_step(const Model *m, int64_t from, int64_t to, const char *hidden, const float *cosine, const float *sine,
              char *logits, float *scratch, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), all = omp_get_num_threads();
        step_part(m, from, to, hidden, cosine, sine, logits, scratch, m->kind, thread, all);
    }
}

static void linear_rows(const Matrix *matrix, int64_t rows, const char *x, int64_t x_stride, char *y, float *scratch, int kind,
                        int thread, int threads) {
    int64_t n = matrix->columns, begin, end;
    float *own = scratch + thread * 2 * padded(n), *packed = own + padded(n), out[BLOCK];
    share_of(matrix->rows, STEP, thread, threads, &begin, &end);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < n; i++) own[i] = element(x + row * x_stride, i, kind);
        pack(own, n, matrix->kind, packed);
        for (int64_t start = begin; start < end; start += BLOCK) {
            int64_t count = end - start < BLOCK ? end - start : BLOCK;
            dot_all(matrix, start, count, packed, out);
            put_all(y + (row * matrix->rows + start) * size_of(kind), out, count, kind);
        }
    }
}

/* y [rows, matrix.rows] = x [rows, columns] times the matrix; `x_stride` in bytes. Scratch as `tda_linear_floats` says. */
void tda_linear(const Matrix *matrix, int64_t rows, const char *x, int64_t x_stride, char *y, float *scratch, int kind,
                int threads) {
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), all = omp_get_num_threads();
        linear_rows(matrix, rows, x, x_stride, y, scratch, kind, thread, all);
    }
}

int64_t tda_linear_floats(const Matrix *matrix, int threads) { return threads * 2 * padded(matrix->columns); }

static void ffn_each(const FFN *ffns, int64_t rows, const char *x, int64_t x_stride, char *y, float *scratch, int kind,
                     int thread, int threads) {
    int64_t hidden = ffns->up.columns;
    float *own = scratch + thread * 3 * padded(hidden), *packed = own + padded(hidden), *out = packed + padded(hidden);
    float *shared = scratch + threads * 3 * padded(hidden);
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t i = 0; i < hidden; i++) own[i] = element(x + row * x_stride, i, kind);
        pack(own, hidden, ffns->up.kind, packed);
        ffn_part(&ffns[row], packed, thread, threads, shared, packed, out);
        if (thread == 0) put_all(y + row * hidden * size_of(kind), out, hidden, kind);
#pragma omp barrier
    }
}

/* Feed-forward networks of rows, each with a description (a list of neurons) of its own: x [rows, hidden] -> y alike. */
void tda_ffn(const FFN *ffns, int64_t rows, const char *x, int64_t x_stride, char *y, float *scratch, int kind, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), all = omp_get_num_threads();
        ffn_each(ffns, rows, x, x_stride, y, scratch, kind, thread, all);
    }
}

int64_t tda_ffn_floats(const FFN *ffn, int threads) {
    return threads * 3 * padded(ffn->up.columns) + ffn_shared(ffn, ffn->up.columns, threads);
}

INLINE void gather_columns(const FFN *from, const Matrix *to, int64_t begin, int64_t end, int kind) {
    int64_t row = from->down.stride, size = size_of(kind), step = from->down_rows ? row : size;
    for (int64_t d = begin; d < end; d++) {
        const char *source = from->down.data + d * (from->down_rows ? size : row);
        char *copy = (char *)row_at(to, d);
        for (int64_t i = 0; i < from->count; i++) memcpy(copy + i * size, source + from->index[i] * step, size);
    }
}

/* What belongs to the neurons of a list, copied: rows of gate and up, and the columns of down, which `to` has as torch has it. */
static void gather_part(const FFN *from, const FFN *to, int thread, int threads) {
    const Matrix *sources[] = {&from->gate, &from->up}, *copies[] = {&to->gate, &to->up};
    int64_t begin, end;
    share_of(from->count, 1, thread, threads, &begin, &end);
    for (int m = 0; m < 2; m++)
        for (int64_t i = begin; sources[m]->data && i < end; i++)
            memcpy((char *)row_at(copies[m], i), row_at(sources[m], from->index[i]),
                   sources[m]->columns * size_of(sources[m]->kind));
    share_of(to->down.rows, 1, thread, threads, &begin, &end);
    if (to->down.kind == BFLOAT16) gather_columns(from, &to->down, begin, end, BFLOAT16);
    else if (to->down.kind == INT8) gather_columns(from, &to->down, begin, end, INT8);
    else gather_columns(from, &to->down, begin, end, FLOAT32);
}

/* Gather the neurons of from's list; no biases, no scales. */
void tda_gather(const FFN *from, const FFN *to, int threads) {
#pragma omp parallel num_threads(threads)
    gather_part(from, to, omp_get_thread_num(), omp_get_num_threads());
}

/* values = squares of a token's activations times `scale`; returns their sum. */
INLINE float square_token(const char *token, int64_t n, const float *weights, float scale, int kind, float *values) {
    vf total = {0};
    float rest = 0;
    for (int64_t i = 0; i < n; i++) values[i] = element(token, i, kind) * scale;
    if (weights)
        for (int64_t i = 0; i < n; i++) values[i] *= weights[i];
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        vf square = load(values + i) * load(values + i);
        store(values + i, square);
        total += square;
    }
    for (; i < n; i++) rest += values[i] *= values[i];
    return rest + sum(total);
}

/* sums += the squares of each token's activations, taken relative to the token's norm where `relative`.
 * A thread reads its tokens once: the second look at a token, when its norm is known, finds it in the cache. */
INLINE void squares_part(const char *a, int64_t tokens, int64_t n, int64_t stride, const uint8_t *inside, const float *weights,
                         int relative, float *sums, float *scratch, int kind, int thread, int threads) {
    float *values = scratch + thread * 2 * padded(n), *own = values + padded(n);
    int64_t begin, end;
    memset(own, 0, n * sizeof *own);
    share_of(tokens, 1, thread, threads, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        if (!inside[t]) continue;
        const char *token = a + t * stride;
        float norm = square_token(token, n, weights, 1, kind, values), factor = 1;
        if (relative) { /* squares of very small or large activations leave the range of float32 */
            if (norm < 1e-20f) norm = square_token(token, n, weights, 0x1p64f, kind, values);
            else if (norm > 1e30f) norm = square_token(token, n, weights, 0x1p-80f, kind, values);
            factor = norm == 0 ? 0 : 1 / norm;
        }
        for (int64_t i = 0; i < n; i++) own[i] += factor * values[i];
    }
#pragma omp barrier
    share_of(n, W, thread, threads, &begin, &end);
    for (int t = 0; t < threads; t++)
        for (int64_t i = begin; i < end; i++) sums[i] += scratch[t * 2 * padded(n) + padded(n) + i];
}

void tda_squares(const char *a, int64_t tokens, int64_t n, int64_t stride, const uint8_t *inside, const float *weights,
                 int relative, float *sums, float *scratch, int kind, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int thread = omp_get_thread_num(), all = omp_get_num_threads();
        if (kind == BFLOAT16)
            squares_part(a, tokens, n, stride, inside, weights, relative, sums, scratch, BFLOAT16, thread, all);
        else squares_part(a, tokens, n, stride, inside, weights, relative, sums, scratch, FLOAT32, thread, all);
    }
}

int64_t tda_squares_floats(int64_t n, int threads) { return threads * 2 * padded(n); }

/* Places of the nonzero bytes of mask [n], ascending; returns how many. */
int64_t tda_list(const uint8_t *mask, int64_t n, int32_t *index) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        if (mask[i]) index[count++] = (int32_t)i;
    return count;
}

/* Sizes of the structs, for the caller to compare with its own. */
void tda_sizes(int64_t *sizes) {
    sizes[0] = sizeof(Matrix);
    sizes[1] = sizeof(Norm);
    sizes[2] = sizeof(FFN);
    sizes[3] = sizeof(Layer);
    sizes[4] = sizeof(Model);
}

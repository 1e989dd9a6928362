// SPDX-License-Identifier: Apache-2.0
// simt_emu.h - host back end of simt.h: fibers + rendez-vous collectives + checked shared memory
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cmath>
#include <vector>
#include <deque>
#include <map>
#include <string>
#include <functional>
#define KFN static inline
#define KFN_MEMBER inline
#define HDFN static inline
#define KERNEL
#define UNROLL
#define NOUNROLL
#define UNROLL_BY(n)
#define __launch_bounds__(...)
struct uint4 { uint32_t x, y, z, w; };

namespace emu {
[[noreturn]] inline void die(const char* what, long a = 0, long b = 0) {
  fprintf(stderr, "EMU ERROR: %s (%ld, %ld)\n", what, a, b); fflush(stderr); abort();
}
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.weak emu_switch
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline float h2f(uint16_t v) { _Float16 h; memcpy(&h, &v, 2); return (float)h; }
inline uint16_t f2h(float f) { _Float16 h = (_Float16)f; uint16_t v; memcpy(&v, &h, 2); return v; }
constexpr uint32_t CTA_SHIFT = 24, OFF_MASK = (1u << CTA_SHIFT) - 1, BASE = 1024;
struct Cell { int wtid = -1, wep = -1, rtid = -1, rep = -1; bool rmany = false; int pend = 0; int dirty = -1; };
struct CpAsync { uint32_t dst; const void* src; };
struct MBar { int count = 0, pending = 0; long tx = 0; uint32_t phase = 0; bool init = false; };
struct WgOp { std::vector<float*> d; uint64_t da, db; int acc, N; };
struct Fiber {
  void* sp = nullptr; char* stack = nullptr; int tid = 0, cta = 0; bool done = false;
  std::vector<CpAsync> open; std::deque<std::vector<CpAsync>> groups;
  std::vector<uint32_t> dirty;
};
struct WColl { int n = 0; void* arg[128]; std::vector<Fiber*> wait; int op = -1; };
struct Bar { int n = 0; std::vector<Fiber*> wait; };
struct WGroup { std::vector<WgOp> open; std::deque<std::vector<WgOp>> groups; };
struct Cta {
  int bx, by, bz, rank; std::vector<uint8_t> smem; std::vector<Cell> cell; int epoch = 0; bool special_sync = false;
  std::vector<WColl> wc, wgc; std::map<int, Bar> bars; std::map<uint32_t, MBar> mb; std::vector<WGroup> wg;
};
struct Range { const char* p; size_t n; const char* name; };
struct Sim {
  std::vector<Cta> ctas; std::vector<Fiber> fib; std::vector<Fiber*> run; Fiber* cur = nullptr; void* sched = nullptr;
  int nthr = 0, gx = 1, gy = 1, gz = 1; bool race = true; std::vector<Range> ranges; uint64_t rng = 88172645463325252ull;
  std::vector<std::function<void()>> async_ops; std::vector<std::pair<Fiber*, std::pair<uint32_t, uint32_t>>> mwait; Bar clus;
  long ldsm = 0, ldsm_wave = 0, bulk = 0, bulk_bytes_l2 = 0, wgmma = 0; std::function<void()> body;
  uint64_t rnd() { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return rng; }
};
inline Sim& S = *new Sim;  // never destroyed: a thread may be in a launch while the process ends
inline Cta& C_() { return S.ctas[S.cur->cta]; }
inline void yield() { emu_switch(&S.cur->sp, S.sched); }
inline void wake(std::vector<Fiber*>& w) { for (auto f : w) S.run.push_back(f); w.clear(); }
inline void chk(const void* p, size_t n) {
  for (auto& r : S.ranges) if ((const char*)p >= r.p && (const char*)p + n <= r.p + r.n) { if ((uintptr_t)p % n) die("misaligned global"); return; }
  die("global access out of bounds", (long)p);
}
inline uint8_t* sptr(uint32_t a, uint32_t n, int cta = -1) {
  Cta& c = S.ctas[cta < 0 ? S.cur->cta : cta];
  if (a % n) die("misaligned shared access", a, n);
  if (a < BASE || a - BASE + n > c.smem.size()) die("shared access out of range", a, n);
  return &c.smem[a - BASE];
}
inline void racew(uint32_t a, uint32_t n) {
  Cta& c = C_(); int t = S.cur->tid;
  for (uint32_t i = (a - BASE) / 4; i < (a - BASE + n + 3) / 4; i++) {
    Cell& k = c.cell[i];
    if (S.race) {
      if (k.pend && k.wtid != t) die("write to cell with cp.async pending", a, t);
      if (k.wep == c.epoch && k.wtid != t) die("WAW race", a, t);
      if (k.rep == c.epoch && (k.rmany || k.rtid != t)) die("WAR race", a, t);
    }
    k.wtid = t; k.wep = c.epoch; k.dirty = t;
  }
  S.cur->dirty.push_back(a);
}
inline void racer(uint32_t a, uint32_t n) {
  if (!S.race) return;
  Cta& c = C_(); int t = S.cur->tid;
  for (uint32_t i = (a - BASE) / 4; i < (a - BASE + n + 3) / 4; i++) {
    Cell& k = c.cell[i];
    if (k.pend) die("read of cell with cp.async pending", a, t);
    if (k.wep == c.epoch && k.wtid != t) die("RAW race", a, t);
    if (k.rep == c.epoch && k.rtid != t) k.rmany = true; else if (k.rep != c.epoch) k.rmany = false;
    k.rtid = t; k.rep = c.epoch;
  }
}
// warp (32) or warpgroup (128) rendez-vous; exec runs once with all lane arguments
template <class F> inline void coll(std::vector<WColl>& v, int idx, int n, int op, void* arg, F exec) {
  WColl& w = v[idx]; int per = n; int lane = S.cur->tid % per;
  if (w.n == 0) w.op = op; else if (w.op != op) die("divergent collective", w.op, op);
  w.arg[lane] = arg; w.n++;
  if (w.n == per) { w.n = 0; exec(w.arg); wake(w.wait); }
  else { w.wait.push_back(S.cur); yield(); }
}
template <class F> inline void warp(int op, void* arg, F exec) { coll(C_().wc, S.cur->tid / 32, 32, op, arg, exec); }
template <class F> inline void wgrp(int op, void* arg, F exec) { coll(C_().wgc, S.cur->tid / 128, 128, op, arg, exec); }
inline void mb_check(int cta, uint32_t off, MBar& m) {
  if (m.pending == 0 && m.tx == 0) {
    m.phase++; m.pending = m.count;
    for (size_t i = 0; i < S.mwait.size();)
      if (S.mwait[i].first->cta == cta && S.mwait[i].second.first == off && ((m.phase - 1) & 1) == S.mwait[i].second.second) { S.run.push_back(S.mwait[i].first); S.mwait.erase(S.mwait.begin() + i); } else i++;
  }
}
inline MBar& mb(int cta, uint32_t off) { auto& m = S.ctas[cta].mb[off]; if (!m.init) die("mbarrier not initialised", off); return m; }
inline void mb_arrive(int cta, uint32_t off) { MBar& m = mb(cta, off); if (--m.pending < 0) die("mbarrier over-arrival", off); mb_check(cta, off, m); }
inline void mb_tx(int cta, uint32_t off, long d) { MBar& m = mb(cta, off); m.tx += d; mb_check(cta, off, m); }
inline void exec_wg(int cta, const WgOp& o) {
  Cta& c = S.ctas[cta]; S.wgmma++;
  auto addr = [&](uint64_t d, int row, int k) {
    uint32_t start = (d & 0x3fff) << 4, lbo = ((d >> 16) & 0x3fff) << 4, sbo = ((d >> 32) & 0x3fff) << 4;
    if (d >> 46) die("descriptor: base offset / swizzle bits set");
    uint32_t a = start + (row / 8) * sbo + (row % 8) * 16 + (k / 8) * lbo + (k % 8) * 2;
    if (a < BASE || a - BASE + 2 > c.smem.size()) die("wgmma operand out of range", a);
    if (c.cell[(a - BASE) / 4].dirty >= 0) die("wgmma reads generic-proxy data without fence.proxy.async", a);
    uint16_t v; memcpy(&v, &c.smem[a - BASE], 2); return h2f(v);
  };
  std::vector<float> A(64 * 16), B(o.N * 16);
  for (int r = 0; r < 64; r++) for (int k = 0; k < 16; k++) A[r * 16 + k] = addr(o.da, r, k);
  for (int n = 0; n < o.N; n++) for (int k = 0; k < 16; k++) B[n * 16 + k] = addr(o.db, n, k);
  for (int t = 0; t < 128; t++) for (int j = 0; j < o.N / 8; j++) for (int q = 0; q < 4; q++) {
    int row = (t / 32) * 16 + (t % 32) / 4 + (q >= 2 ? 8 : 0), col = j * 8 + (t % 4) * 2 + (q & 1);
    float s = 0; for (int k = 0; k < 16; k++) s += A[row * 16 + k] * B[col * 16 + k];
    float& d = o.d[t][j * 4 + q]; d = (o.acc ? d : 0.f) + s;
  }
}
inline void trampoline() { S.body(); S.cur->done = true; yield(); die("resumed a finished fiber"); }

// run one cluster: ctas are given as (bx,by,bz); fn is the kernel body
inline void launch(const std::vector<std::array<int, 3>>& blocks, int nthr, size_t smem, bool race, std::function<void()> fn) {
  S.nthr = nthr; S.race = race; S.body = fn; S.run.clear(); S.async_ops.clear(); S.mwait.clear(); S.clus = Bar();
  S.ctas.assign(blocks.size(), Cta()); static auto& stacks = *new std::vector<char*>;
  for (size_t i = 0; i < blocks.size(); i++) {
    Cta& c = S.ctas[i]; c.bx = blocks[i][0]; c.by = blocks[i][1]; c.bz = blocks[i][2]; c.rank = (int)i;
    c.smem.resize(smem); for (size_t j = 0; j + 1 < smem; j += 2) { c.smem[j] = 0xff; c.smem[j + 1] = 0x7f; }   // NaN as bf16 and as f32
    c.cell.resize(smem / 4 + 4); c.wc.resize(nthr / 32); c.wgc.resize(nthr / 128 + 1); c.wg.resize(nthr / 128 + 1);
  }
  constexpr size_t STK = 128 << 10; size_t nf = blocks.size() * nthr;
  while (stacks.size() < nf) stacks.push_back((char*)aligned_alloc(64, STK));
  S.fib.assign(nf, Fiber());
  for (size_t i = 0; i < nf; i++) {
    Fiber& f = S.fib[i]; f.tid = i % nthr; f.cta = i / nthr; f.stack = stacks[i];
    void** sp = (void**)(f.stack + STK - 64); *--sp = nullptr; *--sp = (void*)trampoline; for (int k = 0; k < 6; k++) *--sp = nullptr;
    f.sp = sp; S.run.push_back(&f);
  }
  size_t left = nf;
  while (left) {
    if (!S.async_ops.empty() && (S.run.empty() || S.rnd() % 64 == 0)) {
      size_t i = S.rnd() % S.async_ops.size(); auto op = S.async_ops[i]; S.async_ops.erase(S.async_ops.begin() + i); op(); continue;
    }
    if (S.run.empty()) {
      for (auto& w : S.mwait) fprintf(stderr, "  cta %d tid %d waits mbarrier %u parity %u\n", w.first->cta, w.first->tid, w.second.first, w.second.second);
      die("deadlock", left);
    }
    size_t i = S.rnd() % S.run.size(); Fiber* f = S.run[i]; S.run[i] = S.run.back(); S.run.pop_back();
    S.cur = f; emu_switch(&S.sched, f->sp); if (f->done) { left--; if (!f->open.empty()) die("uncommitted cp.async at exit"); }
  }
}
}  // namespace emu

namespace dev {
using namespace emu;
KFN int tid() { return S.cur->tid; }
KFN int bx() { return C_().bx; }
KFN int by() { return C_().by; }
KFN int bz() { return C_().bz; }
KFN uint32_t smem_base() { return BASE; }
KFN void named_bar(int id, int n) {
  Bar& b = C_().bars[id]; b.n++;
  if (b.n == n) { b.n = 0; if (id == 0) C_().epoch++; wake(b.wait); } else { b.wait.push_back(S.cur); yield(); }
}
KFN void sync() { named_bar(0, S.nthr); }
KFN void syncwarp() { warp(7, nullptr, [](void**) {}); }
KFN void cp_async16(uint32_t s, const void* g) {
  chk(g, 16); sptr(s, 16); racew(s, 16); Cta& c = C_();
  for (uint32_t i = (s - BASE) / 4; i < (s - BASE) / 4 + 4; i++) c.cell[i].pend = 1;
  uint8_t* d = sptr(s, 16); for (int i = 0; i < 16; i += 2) { d[i] = 0xff; d[i + 1] = 0x7f; }
  S.cur->open.push_back({s, g});
}
KFN void cp_commit() { S.cur->groups.push_back(S.cur->open); S.cur->open.clear(); }
template <int N> KFN void cp_wait() {
  while ((int)S.cur->groups.size() > N) {
    for (auto& q : S.cur->groups.front()) { memcpy(sptr(q.dst, 16), q.src, 16); for (uint32_t i = (q.dst - BASE) / 4; i < (q.dst - BASE) / 4 + 4; i++) C_().cell[i].pend = 0, C_().cell[i].wep = C_().epoch; }
    S.cur->groups.pop_front();
  }
}
struct LdsmArg { uint32_t* r; uint32_t a; };
KFN void ldsm4(uint32_t (&r)[4], uint32_t a) {
  racer(a, 16); LdsmArg arg{r, a};
  warp(1, &arg, [](void** v) {
    LdsmArg** l = (LdsmArg**)v; S.ldsm++;
    for (int m = 0; m < 4; m++) {
      int use[8] = {0}; int mx = 0;
      for (int k = 0; k < 8; k++) { int q = (l[m * 8 + k]->a / 16) % 8; if (++use[q] > mx) mx = use[q]; }
      S.ldsm_wave += mx;
      for (int t = 0; t < 32; t++) memcpy(&l[t]->r[m], sptr(l[m * 8 + t / 4]->a, 16) + (t % 4) * 4, 4);
    }
  });
}
struct MmaArg { float* d; const uint32_t* a; uint32_t b0, b1; };
KFN void mma16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaArg arg{d, a, b0, b1};
  warp(2, &arg, [](void** v) {
    MmaArg** l = (MmaArg**)v; float A[16][16], B[16][8];
    auto h = [](uint32_t u, int i) { return h2f(i ? u >> 16 : u & 0xffff); };
    for (int t = 0; t < 32; t++) for (int i = 0; i < 2; i++) {
      int g = t / 4, c = (t % 4) * 2 + i;
      A[g][c] = h(l[t]->a[0], i); A[g + 8][c] = h(l[t]->a[1], i); A[g][c + 8] = h(l[t]->a[2], i); A[g + 8][c + 8] = h(l[t]->a[3], i);
      B[c][g] = h(l[t]->b0, i); B[c + 8][g] = h(l[t]->b1, i);
    }
    for (int t = 0; t < 32; t++) for (int q = 0; q < 4; q++) {
      int r = t / 4 + (q >= 2 ? 8 : 0), c = (t % 4) * 2 + (q & 1); float s = l[t]->d[q];
      for (int k = 0; k < 16; k++) s += A[r][k] * B[k][c];
      l[t]->d[q] = s;
    }
  });
}
KFN uint4 ldg128(const void* p) { chk(p, 16); uint4 v; memcpy(&v, p, 16); return v; }
KFN uint4 ldg128_nc(const void* p) { return ldg128(p); }
KFN void stg128(void* p, uint4 v) { chk(p, 16); memcpy(p, &v, 16); }
KFN void sts128(uint32_t a, uint4 v) { racew(a, 16); memcpy(sptr(a, 16), &v, 16); }
KFN uint4 lds128(uint32_t a) { racer(a, 16); uint4 v; memcpy(&v, sptr(a, 16), 16); return v; }
KFN void sts32(uint32_t a, uint32_t v) { racew(a, 4); memcpy(sptr(a, 4), &v, 4); }
KFN uint32_t lds32(uint32_t a) { racer(a, 4); uint32_t v; memcpy(&v, sptr(a, 4), 4); return v; }
KFN float fbits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
KFN uint32_t ubits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
struct ShflArg { float v; float* out; int m; };
KFN float shfl_xor(float v, int m) {
  float out; ShflArg a{v, &out, m};
  warp(3, &a, [](void** p) { ShflArg** l = (ShflArg**)p; for (int t = 0; t < 32; t++) *l[t]->out = l[t ^ l[t]->m]->v; });
  return out;
}
template <class T> struct ShflOfArg { T v; T* out; int m; };
template <class T> KFN T shfl_xor_of(int op, T v, int m) {
  T out; ShflOfArg<T> a{v, &out, m};
  warp(op, &a, [](void** p) { auto l = (ShflOfArg<T>**)p; for (int t = 0; t < 32; t++) *l[t]->out = l[t ^ l[t]->m]->v; });
  return out;
}
KFN int32_t shfl_xor(int32_t v, int m) { return shfl_xor_of<int32_t>(5, v, m); }
KFN double shfl_xor(double v, int m) { return shfl_xor_of<double>(6, v, m); }
KFN float rsqrt(float v) { return 1.f / std::sqrt(v); }
KFN float fma(float a, float b, float c) { return std::fma(a, b, c); }
KFN float relu(float v) { return v <= 0.f ? 0.f : v; }
KFN uint32_t pack_half2(float lo, float hi) { return f2h(lo) | ((uint32_t)f2h(hi) << 16); }
KFN void unpack_half2(uint32_t v, float& lo, float& hi) { lo = h2f(v & 0xffff); hi = h2f(v >> 16); }
KFN int gx() { return S.gx; }
KFN int gy() { return S.gy; }
KFN int gz() { return S.gz; }
KFN int threads() { return S.nthr; }
template <class T> KFN T load(const T* p) { chk(p, sizeof(T)); return *p; }
template <class T> KFN void store(T* p, T v) { chk(p, sizeof(T)); *p = v; }
KFN float ldsf(uint32_t a) { return fbits(lds32(a)); }
KFN void stsf(uint32_t a, float v) { sts32(a, ubits(v)); }
KFN double ldsd(uint32_t a) { racer(a, 8); double v; memcpy(&v, sptr(a, 8), 8); return v; }
KFN void stsd(uint32_t a, double v) { racew(a, 8); memcpy(sptr(a, 8), &v, 8); }
struct ShflIArg { float v; float* out; int lane; };
KFN float shfl(float v, int lane) {
  float out; ShflIArg a{v, &out, lane};
  warp(4, &a, [](void** p) { ShflIArg** l = (ShflIArg**)p; for (int t = 0; t < 32; t++) *l[t]->out = l[l[t]->lane & 31]->v; });
  return out;
}
KFN float mul(float a, float b) { return a * b; }
KFN float add(float a, float b) { return a + b; }
KFN double mul(double a, double b) { return a * b; }
KFN double add(double a, double b) { return a + b; }
KFN float sqrt(float v) { return std::sqrt(v); }
KFN float tanh(float v) { return std::tanh(v); }
KFN float max(float a, float b) { return a > b ? a : b; }
KFN int uniform(int v) { return v; }
KFN void pdl_wait() {}
KFN void pdl_launch() {}
// ---- Hopper
KFN uint32_t ctarank() { return C_().rank; }
KFN uint32_t mapa(uint32_t a, uint32_t cta) { return (a & OFF_MASK) | ((cta + 1) << CTA_SHIFT); }
KFN int cta_of(uint32_t a) { return (a >> CTA_SHIFT) ? (int)(a >> CTA_SHIFT) - 1 : S.cur->cta; }
KFN void cluster_sync() { S.clus.n++; if (S.clus.n == (int)S.fib.size()) { S.clus.n = 0; wake(S.clus.wait); } else { S.clus.wait.push_back(S.cur); yield(); } }
KFN void mbar_init(uint32_t b, uint32_t n) { sptr(b, 8); MBar m; m.count = m.pending = (int)n; m.init = true; C_().mb[b] = m; }
KFN void mbar_init_fence() {}
KFN void mbar_arrive(uint32_t b) { mb_arrive(S.cur->cta, b); }
KFN void mbar_arrive_cluster(uint32_t b) { mb_arrive(cta_of(b), b & OFF_MASK); }
KFN void mbar_expect(uint32_t b, uint32_t bytes) { MBar& m = mb(S.cur->cta, b); m.tx += bytes; mb_arrive(S.cur->cta, b); }
KFN void mbar_wait(uint32_t b, uint32_t parity) {
  MBar& m = mb(S.cur->cta, b);
  if (((m.phase - 1) & 1) == (parity & 1)) return;          // the phase with this parity has completed
  S.mwait.push_back({S.cur, {b, parity & 1}}); yield();
}
KFN void fence_async() { for (auto a : S.cur->dirty) for (int i = 0; i < 4; i++) { Cell& k = C_().cell[(a - BASE) / 4 + i]; if (k.dirty == S.cur->tid) k.dirty = -1; } S.cur->dirty.clear(); }
KFN void bulk_to(int cta, uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
  if (dst % 16 || bytes % 16 || (uintptr_t)src % 16) die("bulk copy alignment");
  S.async_ops.push_back([=] {
    memcpy(sptr(dst, 16, cta), src, bytes); if (dst - BASE + bytes > S.ctas[cta].smem.size()) die("bulk range");
    for (uint32_t i = (dst - BASE) / 4; i < (dst - BASE + bytes) / 4; i++) S.ctas[cta].cell[i].dirty = -1;
    mb_tx(cta, bar, -(long)bytes);
  });
}
KFN void bulk_poison(int cta, uint32_t dst, uint32_t bytes) { uint8_t* d = sptr(dst, 16, cta); for (uint32_t i = 0; i < bytes; i += 2) { d[i] = 0xff; d[i + 1] = 0x7f; } }
KFN void bulk_g2s(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) { S.bulk++; S.bulk_bytes_l2 += bytes; bulk_poison(S.cur->cta, dst, bytes); bulk_to(S.cur->cta, dst, src, bytes, bar); }
KFN void bulk_g2s_mc(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, uint16_t mask) {
  S.bulk++; S.bulk_bytes_l2 += bytes;
  for (size_t i = 0; i < S.ctas.size(); i++) if (mask >> i & 1) { bulk_poison((int)i, dst & OFF_MASK, bytes); bulk_to((int)i, dst & OFF_MASK, src, bytes, bar & OFF_MASK); }
}
KFN void wg_fence() {}
struct WgArg { float* d; uint64_t da, db; int acc; };
template <int N> KFN void wgmma_rec(float* d, uint64_t da, uint64_t db, int acc) {
  WgArg a{d, da, db, acc};
  wgrp(10, &a, [](void** v) {
    WgArg** l = (WgArg**)v; WgOp o; o.da = l[0]->da; o.db = l[0]->db; o.acc = l[0]->acc; o.N = N;
    for (int t = 0; t < 128; t++) { if (l[t]->da != o.da || l[t]->db != o.db || l[t]->acc != o.acc) die("wgmma descriptors differ in the warpgroup", t); o.d.push_back(l[t]->d); }
    C_().wg[S.cur->tid / 128].open.push_back(o);
  });
}
KFN void wgmma_n64(float (&d)[32], uint64_t da, uint64_t db, int acc) { wgmma_rec<64>(d, da, db, acc); }
KFN void wgmma_n128(float (&d)[64], uint64_t da, uint64_t db, int acc) { wgmma_rec<128>(d, da, db, acc); }
KFN void wg_commit() { wgrp(11, nullptr, [](void**) { auto& w = C_().wg[S.cur->tid / 128]; w.groups.push_back(w.open); w.open.clear(); }); }
template <int N> KFN void wg_wait() {
  wgrp(12, nullptr, [](void**) { auto& w = C_().wg[S.cur->tid / 128]; while ((int)w.groups.size() > N) { for (auto& o : w.groups.front()) exec_wg(S.cur->cta, o); w.groups.pop_front(); } });
}
template <int R> KFN void wg_touch(float (&)[R]) {}
}  // namespace dev

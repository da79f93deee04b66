"""Members of finished campaigns: select experiments to average, predict tiles with them, export them."""
